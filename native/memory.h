// Scratch memory that is used again: large blocks fresh from the system cost a page fault every 4 KiB.
#pragma once

#include <cstdint>

namespace ostinato {

// A block aligned to 64 bytes, contents undefined; returned to a small cache at the end of its life.
class Buffer {
 public:
  explicit Buffer(int64_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;  // as allocated: asked for, rounded up to a size class
};

// Asks for huge pages in a block that is about to be written for the first time, whoever allocated it: faults become 512
// times fewer. Changes nothing where the block is small or its pages exist; only Linux is asked.
void prefer_huge_pages(void* data, int64_t bytes);

// Gives cached blocks back to the system.
void release_cached_memory();

// A number that tells memory's contents apart, from every 64 bytes or, with a stride of n, from every n-th 64.
uint64_t digest_of(const char* from, int64_t bytes, int64_t stride, uint64_t seed);

}  // namespace ostinato
