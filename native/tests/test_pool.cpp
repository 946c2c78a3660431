#include "pool.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cfenv>
#include <thread>
#include <vector>

#include "testing.h"

#if defined(__SANITIZE_THREAD__)
#define OSTINATO_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define OSTINATO_TSAN 1
#endif
#endif

using namespace ostinato;

namespace {

// Plain memory, so that the thread sanitizer sees a missing ordering.
struct Counts {
  std::vector<int> n_runs, worker, value;
  std::vector<std::atomic<int>> n_inside;
  std::atomic<int> n_overlaps{0};
  explicit Counts(int n_tasks, int n_threads)
      : n_runs(n_tasks), worker(n_tasks, -1), value(n_tasks, 7), n_inside(n_threads) {}

  static void task(void* context, int index, int worker) {
    Counts& counts = *static_cast<Counts*>(context);
    if (counts.n_inside[worker].fetch_add(1) != 0) ++counts.n_overlaps;
    counts.n_runs[index] += 1;
    counts.worker[index] = worker;
    counts.value[index] = 3 * counts.value[index] + index;
    counts.n_inside[worker].fetch_sub(1);
  }
};

int n_wrong(int n_threads, int n_tasks) {
  Counts counts(n_tasks, n_threads < 1 ? 1 : n_threads);
  parallel(n_threads, n_tasks, Counts::task, &counts);
  int n = counts.n_overlaps;
  for (int i = 0; i < n_tasks; ++i) n += counts.n_runs[i] != 1 || counts.worker[i] < 0 || counts.value[i] != 21 + i;
  return n;
}

}  // namespace

TEST(pool_runs_every_task_once_at_any_count) {
  for (int repeat = 0; repeat < 20; ++repeat)
    for (int n_threads : {1, 2, 3, 8, 300})
      for (int n_tasks : {0, 1, 2, 3, 7, 64, 1000}) CHECK(n_wrong(n_threads, n_tasks) == 0);
}

TEST(pool_wakes_sleeping_workers) {
  for (int repeat = 0; repeat < 30; ++repeat) {
    usleep(repeat % 3 == 0 ? 2000 : 60);
    CHECK(n_wrong(2, 9) == 0);
  }
}

TEST(pool_uses_no_more_threads_than_asked_and_than_cores) {
  struct Context {
    std::atomic<int> n_inside{0}, most{0};
  } context;
  for (int n_threads : {2, 64}) {
    context.most = 0;
    parallel(
        n_threads, 200,
        [](void* argument, int, int) {
          Context& c = *static_cast<Context*>(argument);
          const int n = c.n_inside.fetch_add(1) + 1;
          int most = c.most.load();
          while (n > most && !c.most.compare_exchange_weak(most, n)) {
          }
          usleep(20);
          c.n_inside.fetch_sub(1);
        },
        &context);
    const int limit = n_threads < usable_cores() ? n_threads : usable_cores();
    CHECK(context.most >= 1 && context.most <= limit);
  }
}

TEST(pool_nested_calls_run_on_their_thread) {
  struct Context {
    std::atomic<int> n_wrong{0}, n_inner{0};
  } context;
  parallel(
      2, 8,
      [](void* argument, int, int) {
        const std::thread::id outer = std::this_thread::get_id();
        struct Inner {
          Context* context;
          std::thread::id thread;
        } inner{static_cast<Context*>(argument), outer};
        parallel(
            2, 5,
            [](void* inner_argument, int, int worker) {
              Inner& i = *static_cast<Inner*>(inner_argument);
              if (worker != 0 || std::this_thread::get_id() != i.thread) ++i.context->n_wrong;
              ++i.context->n_inner;
            },
            &inner);
        if (gang(2, [](void*, int, Barrier&) {}, nullptr)) ++inner.context->n_wrong;
      },
      &context);
  CHECK(context.n_inner == 40);
  CHECK(context.n_wrong == 0);
}

TEST(pool_serves_several_callers_at_once) {
  std::atomic<int> n_wrong_total{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&n_wrong_total, caller] {
      for (int repeat = 0; repeat < 300; ++repeat) n_wrong_total += n_wrong(2 + caller % 2, 1 + (repeat * 7) % 33);
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(n_wrong_total == 0);
}

TEST(pool_gang_meets_at_every_barrier) {
  constexpr int kThreads = 2, kSteps = 500;
  struct Context {
    // What a thread writes before a barrier the others read after it, in plain memory; two buffers in turn.
    int written[2][kThreads][16] = {};
    std::atomic<int> n_wrong{0}, n_inside{0};
  };
  int n_run = 0, n_refused = 0;
  for (int repeat = 0; repeat < 40; ++repeat) {
    Context context;
    const bool has_run = gang(
        kThreads,
        [](void* argument, int worker, Barrier& barrier) {
          Context& c = *static_cast<Context*>(argument);
          ++c.n_inside;
          for (int step = 0; step < kSteps; ++step) {
            c.written[step % 2][worker][0] = step + 100 * worker;
            barrier.wait();
            for (int i = 0; i < kThreads; ++i)
              if (c.written[step % 2][i][0] != step + 100 * i) ++c.n_wrong;
          }
        },
        &context);
    CHECK(context.n_inside == (has_run ? kThreads : 0));
    CHECK(context.n_wrong == 0);
    ++(has_run ? n_run : n_refused);
    if (!has_run) usleep(3000);
  }
  std::printf("  %d gangs ran, %d were refused\n", n_run, n_refused);
}

TEST(pool_gang_refuses_what_is_not_to_be_had) {
  const auto count = [](void* argument, int, Barrier& barrier) {
    ++*static_cast<std::atomic<int>*>(argument);
    barrier.wait();
  };
  std::atomic<int> n{0};
  CHECK(gang(1, count, &n));
  CHECK(n == 1);
  CHECK(!gang(usable_cores() + 1, count, &n));
  CHECK(n == 1);
}

TEST(pool_short_calls_leave_sleepers_alone_until_they_are_frequent) {
  const auto count = [](void* argument, int, Barrier& barrier) {
    ++*static_cast<std::atomic<int>*>(argument);
    barrier.wait();
  };
  if (usable_cores() < 2) return;
  CHECK(n_wrong(2, 20) == 0);
  usleep(20000);  // longer than workers spin
  std::atomic<int> n{0};
  CHECK(!gang(2, count, &n, 0));
  CHECK(n == 0);
  // How soon depends on what else the machine does; that it never does more than it says does not.
  int n_run = 0, n_calls = 0;
  for (; n_calls < 100000 && n_run == 0; ++n_calls) n_run += gang(2, count, &n, 0);
  CHECK(n == 2 * n_run);
  std::printf("  %d gang after %d calls\n", n_run, n_calls);
}

TEST(pool_gangs_and_tasks_of_several_callers_mix) {
  std::atomic<int> n_wrong_total{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller)
    callers.emplace_back([&n_wrong_total] {
      for (int repeat = 0; repeat < 100; ++repeat) {
        n_wrong_total += n_wrong(2, 5);
        std::atomic<int> n{0};
        const bool has_run = gang(
            2,
            [](void* argument, int, Barrier& barrier) {
              for (int step = 0; step < 10; ++step) barrier.wait();
              ++*static_cast<std::atomic<int>*>(argument);
            },
            &n);
        n_wrong_total += n != (has_run ? 2 : 0);
      }
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(n_wrong_total == 0);
}

TEST(pool_workers_take_the_callers_rounding) {
  struct Context {
    double values[64];
  } down, nearest;
  const auto third = [](void* argument, int index, int) {
    volatile double one = 1.0, three = 3.0;
    static_cast<Context*>(argument)->values[index] = one / three;
    usleep(30);
  };
  const int before = std::fegetround();
  std::fesetround(FE_UPWARD);
  parallel(2, 64, third, &down);
  std::fesetround(before);
  parallel(2, 64, third, &nearest);
  int n_up = 0, n_nearest = 0;
  for (int i = 0; i < 64; ++i) {
    n_up += down.values[i] > 1.0 / 3.0;
    n_nearest += nearest.values[i] == 1.0 / 3.0;
  }
  CHECK(n_up == 64);
  CHECK(n_nearest == 64);
}

#if !defined(OSTINATO_TSAN)  // it does not follow a fork of a threaded process
TEST(pool_forked_child_makes_its_own_threads) {
  CHECK(n_wrong(2, 20) == 0);
  for (int repeat = 0; repeat < 5; ++repeat) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);  // a child that waits for its parent's threads ends as a failure
      int n = 0;
      for (int i = 0; i < 50; ++i) n += n_wrong(2, 20);
      _exit(n == 0 ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(n_wrong(2, 20) == 0);
  }
}
#endif
