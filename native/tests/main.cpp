// Runs the registered tests whose names contain an argument (all without one); the exit code says whether all passed.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "testing.h"

namespace testing {
namespace {

Test* first_test = nullptr;
Test** place_of_next = &first_test;
std::atomic<int> n_failures{0};

bool is_chosen(const Test* test, int n_words, char** words) {
  for (int i = 0; i < n_words; ++i)
    if (std::strstr(test->name, words[i]) != nullptr) return true;
  return n_words == 0;
}

}  // namespace

int add(Test* test) {
  *place_of_next = test;
  place_of_next = &test->next;
  return 0;
}

void fail(const char* file, int line, const char* text) {
  n_failures.fetch_add(1);
  std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, text);
}

}  // namespace testing

int main(int n_arguments, char** arguments) {
  int n_run = 0;
  for (testing::Test* test = testing::first_test; test != nullptr; test = test->next) {
    if (!testing::is_chosen(test, n_arguments - 1, arguments + 1)) continue;
    const auto start = std::chrono::steady_clock::now();
    const int failures_before = testing::n_failures;
    test->run();
    const std::chrono::duration<double, std::milli> time_ms = std::chrono::steady_clock::now() - start;
    std::printf("%s %s (%.0f ms)\n", testing::n_failures == failures_before ? "passed" : "FAILED", test->name,
                time_ms.count());
    std::fflush(stdout);
    ++n_run;
  }
  if (n_run == 0) std::fprintf(stderr, "no test has such a name\n");
  return n_run == 0 || testing::n_failures != 0;
}
