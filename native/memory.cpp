#include "memory.h"

#include <pthread.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ostinato {
namespace {

#if defined(OSTINATO_CHECKED_MEMORY)
// Tests under sanitizers see what lies beyond a block (nothing is rounded up or kept) and what is read before it is
// written (all bits are set: NaN).
constexpr bool kIsChecked = true;
constexpr int64_t kCachedBytes = 0;
#else
constexpr bool kIsChecked = false;
constexpr int64_t kCachedBytes = int64_t{256} << 20;
#endif
constexpr size_t kCachedBlocks = 64;

struct Block {
  void* data;
  int64_t bytes;
};

struct Cache {
  std::mutex mutex;
  std::vector<Block> blocks;  // the most recently returned one last
  int64_t bytes = 0;
};

// Never destroyed: buffers may outlive static destructors.
Cache& cache() {
  static Cache* one = [] {
    // A child forked while another thread holds the lock would wait for it for ever.
    pthread_atfork([] { cache().mutex.lock(); }, [] { cache().mutex.unlock(); }, [] { cache().mutex.unlock(); });
    return new Cache;
  }();
  return *one;
}

// Eight classes to a power of two waste an eighth at most.
int64_t size_class(int64_t bytes) {
  if (kIsChecked) return bytes;
  int64_t step = 64;
  while (step * 16 < bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

// Two words multiplied, both halves of the product folded: every bit of either moves about half of the result's.
uint64_t mixed(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

}  // namespace

Buffer::Buffer(int64_t bytes) : bytes_(size_class(bytes > 0 ? bytes : 1)) {
  Cache& all = cache();
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    for (size_t i = all.blocks.size(); i-- > 0;) {
      if (all.blocks[i].bytes != bytes_) continue;
      data_ = all.blocks[i].data;
      all.bytes -= bytes_;
      all.blocks.erase(all.blocks.begin() + static_cast<std::ptrdiff_t>(i));
      return;
    }
  }
  if (posix_memalign(&data_, 64, static_cast<size_t>(bytes_)) != 0) throw std::bad_alloc();
  if (kIsChecked) std::memset(data_, 0xFF, static_cast<size_t>(bytes_));
}

Buffer::~Buffer() {
  if (!data_) return;
  if (bytes_ > kCachedBytes / 2) {
    std::free(data_);
    return;
  }
  Cache& all = cache();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.blocks.push_back({data_, bytes_});
  all.bytes += bytes_;
  while (all.bytes > kCachedBytes || all.blocks.size() > kCachedBlocks) {
    std::free(all.blocks.front().data);
    all.bytes -= all.blocks.front().bytes;
    all.blocks.erase(all.blocks.begin());
  }
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void prefer_huge_pages(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  // Advice only: where the system does not follow it, pages are as small as they were.
  if (end > first) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

void release_cached_memory() {
  Cache& all = cache();
  const std::lock_guard<std::mutex> lock(all.mutex);
  for (const Block& block : all.blocks) std::free(block.data);
  all.blocks.clear();
  all.bytes = 0;
}

uint64_t digest_of(const char* from, int64_t bytes, int64_t stride, uint64_t seed) {
  constexpr int kLanes = 4;
  constexpr uint64_t kOdd[kLanes] = {0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93};
  uint64_t lanes[kLanes] = {seed, seed + 1, seed + 2, seed + 3};
  int64_t done = 0;
  for (; done + 64 <= bytes; done += 64 * stride) {
    uint64_t words[2 * kLanes];
    std::memcpy(words, from + done, sizeof words);
    for (int i = 0; i < kLanes; ++i) lanes[i] = mixed(words[2 * i] ^ kOdd[i], words[2 * i + 1] ^ lanes[i]);
  }
  // The last 64 bytes, which may overlap, so that the end is always seen.
  uint64_t rest[2 * kLanes] = {};
  const int64_t n = bytes < 64 ? bytes : 64;
  std::memcpy(rest, from + bytes - n, static_cast<size_t>(n));
  for (int i = 0; i < kLanes; ++i) lanes[i] = mixed(rest[2 * i] ^ kOdd[i], rest[2 * i + 1] ^ lanes[i]);
  uint64_t whole = static_cast<uint64_t>(bytes);
  for (uint64_t lane : lanes) whole = mixed(whole ^ kOdd[0], lane ^ kOdd[1]);
  return whole;
}

}  // namespace ostinato
