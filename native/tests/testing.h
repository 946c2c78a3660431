// The C++ tests' own small framework. A part's tests are native/tests/test_<part>.cpp:
//
//   #include "testing.h"
//   TEST(scan_of_one_step_is_the_step) {
//     CHECK(a == b);
//     CHECK_NEAR(value, expected, 1e-6);
//   }
//
// The file joins by existing (configure once more: `make native` does). `make sanitize` runs all of them with the
// address, undefined-behaviour and thread sanitizers; build/dev/ostinato_tests [part of a name] runs some without.
#pragma once

#include <cmath>
#include <cstdio>

namespace testing {

struct Test {
  const char* name;
  void (*run)();
  Test* next;
};

// Registers at start-up; see TEST.
int add(Test* test);

// Counts a failure and prints where it was. Safe on several threads.
void fail(const char* file, int line, const char* text);

}  // namespace testing

#define TEST(title)                                                            \
  static void title();                                                         \
  static testing::Test title##_test = {#title, title, nullptr};                \
  [[maybe_unused]] static const int title##_added = testing::add(&title##_test); \
  static void title()

#define CHECK(condition)                                              \
  do {                                                                \
    if (!(condition)) testing::fail(__FILE__, __LINE__, #condition);  \
  } while (false)

// |value - expected| <= tolerance; false for NaN.
#define CHECK_NEAR(value, expected, tolerance)                                                            \
  do {                                                                                                    \
    const double value_ = (value), expected_ = (expected), tolerance_ = (tolerance);                      \
    if (!(std::fabs(value_ - expected_) <= tolerance_)) {                                                 \
      char text_[256];                                                                                    \
      std::snprintf(text_, sizeof(text_), "%s is %.9g, expected %.9g within %.3g", #value, value_,        \
                    expected_, tolerance_);                                                               \
      testing::fail(__FILE__, __LINE__, text_);                                                           \
    }                                                                                                     \
  } while (false)
