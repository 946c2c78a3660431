// The loops of scan.h for one instruction set.
#include "scan.h"

#include "vector.h"

namespace ostinato {
namespace OSTINATO_ISA {
namespace {

template <typename real>
OSTINATO_INLINE Vector<real> square_root(Vector<real> x) {
  for (int i = 0; i < kLanes<real>; ++i)
    x[i] = sizeof(real) == 4 ? __builtin_sqrtf(x[i]) : __builtin_sqrt(x[i]);
  return x;
}

// Gate functions
//
// Each is made from the inputs of one vector of units, gives keep and add, and turns their gradients into
// those of the inputs: `backward(g, h, d, d_rate)` with g the gradient of h' and h the state before the step.
// The gates of a cell lie side by side in each step, so each gate's stream jumps, and the processor's own
// prefetching loses it (kPrefetches: half the time of a forward run); two separate arrays it follows better
// than we do.

template <typename real>
struct Logistic {
  Vector<real> value, complement;  // sigmoid(x) and sigmoid(-x), both with full relative accuracy

  OSTINATO_INLINE explicit Logistic(Vector<real> x) {
    const Vector<real> e = exp(-x);
    value = divide(broadcast<real>(1), e + real(1));
    complement = e * value;
  }
  OSTINATO_INLINE Vector<real> slope() const { return value * complement; }
};

// g(v) = v + 0.5 for v >= 0 and sigmoid(v) below; or v as it is.
template <typename real, bool kIsPositive>
struct Candidate {
  Vector<real> value, slope;

  OSTINATO_INLINE explicit Candidate(Vector<real> v) {
    value = v;
    slope = broadcast<real>(1);
    if (kIsPositive) {
      const Logistic<real> low(v);
      value = v >= real(0) ? v + real(0.5) : low.value;
      slope = v >= real(0) ? slope : low.slope();
    }
  }
};

template <typename real>
struct LinearGates {
  static constexpr int kInputs = 2;
  static constexpr bool kHasRate = false, kPrefetches = false;
  using V = Vector<real>;
  V keep, add;

  OSTINATO_INLINE LinearGates(const V* in, V) : keep(in[0]), add(in[1]) {}
  OSTINATO_INLINE void backward(V g, V h, V* d, V*) const {
    d[0] = g * h;
    d[1] = g;
  }
};

template <typename real, bool kIsPositive>
struct MinGruGates {
  static constexpr int kInputs = 2;
  static constexpr bool kHasRate = false, kPrefetches = true;
  using V = Vector<real>;
  Logistic<real> z;
  Candidate<real, kIsPositive> n;
  V keep, add;

  OSTINATO_INLINE MinGruGates(const V* in, V)
      : z(in[0]), n(in[1]), keep(z.complement), add(z.value * n.value) {}
  OSTINATO_INLINE void backward(V g, V h, V* d, V*) const {
    d[0] = g * (n.value - h) * z.slope();
    d[1] = g * z.value * n.slope;
  }
};

template <typename real, bool kIsPositive>
struct MinLstmGates {
  static constexpr int kInputs = 3;
  static constexpr bool kHasRate = false, kPrefetches = true;
  using V = Vector<real>;
  Candidate<real, kIsPositive> n;
  // i / (i + f) and f / (i + f) are (1 + e^-f) / den and (1 + e^-i) / den with den = 2 + e^-i + e^-f. All
  // three terms are scaled so that the largest is 1: nothing overflows, and the ratio survives where both
  // gates are closed.
  V write, keep, add, share_i, share_f;

  OSTINATO_INLINE MinLstmGates(const V* in, V) : n(in[2]) {
    const V i = in[0], f = in[1], zero = {};
    const V low = i < f ? i : f, high = i < f ? f : i;
    const V limit = low < zero ? low : zero;
    const V small = exp(low < zero ? low : -low), e_high = exp(limit - high);
    const V one = low < zero ? small : broadcast<real>(1), e_low = low < zero ? broadcast<real>(1) : small;
    const V e_i = i < f ? e_low : e_high, e_f = i < f ? e_high : e_low;
    const V scale = divide(broadcast<real>(1), (one + e_i) + (one + e_f));
    write = (one + e_f) * scale;
    keep = (one + e_i) * scale;
    share_i = e_i * scale;
    share_f = e_f * scale;
    add = write * n.value;
  }
  OSTINATO_INLINE void backward(V g, V h, V* d, V*) const {
    const V apart = g * (h - n.value);
    d[0] = -apart * (write * share_i);
    d[1] = apart * (keep * share_f);
    d[2] = g * write * n.slope;
  }
};

template <typename real>
struct RgLruGates {
  static constexpr int kInputs = 3;
  static constexpr bool kHasRate = true, kPrefetches = true;
  using V = Vector<real>;
  Logistic<real> r, i;
  V n, rate, keep, scale, add, room;

  OSTINATO_INLINE RgLruGates(const V* in, V rate_) : r(in[0]), i(in[1]), n(in[2]), rate(rate_) {
    const V m = expm1(-rate * r.value);
    keep = m + real(1);
    room = -m * (m + real(2));  // 1 - keep^2 without cancellation
    scale = square_root<real>(room);
    add = scale * (i.value * n);
  }
  OSTINATO_INLINE void backward(V g, V h, V* d, V* d_rate) const {
    const V through = g * (i.value * n);
    // The square root of nothing has no derivative: there, what it multiplies is nothing too.
    const real tiny = sizeof(real) == 4 ? real(1.17549435e-38) : real(2.2250738585072014e-308);
    const V bent = room < tiny ? V{} : divide(through * keep, room < tiny ? broadcast<real>(1) : scale);
    const V d_log = keep * fma(g, h, -bent);
    d[0] = -d_log * rate * r.slope();
    d[1] = g * scale * n * i.slope();
    d[2] = g * scale * i.value;
    *d_rate = fma(-d_log, r.value, *d_rate);
  }
};

// Loops

// Calls body(unit, n) for vectors of units, n < W in the last one only.
template <typename real, typename Body>
OSTINATO_INLINE void for_units(int64_t unit, int64_t unit_end, const Body& body) {
  constexpr int W = kLanes<real>;
  for (; unit + W <= unit_end; unit += W) body(unit, int64_t{W});
  if (unit < unit_end) body(unit, unit_end - unit);
}

template <typename real>
OSTINATO_INLINE void copy(real* to, const real* from, int64_t unit, int64_t unit_end) {
  for_units<real>(unit, unit_end,
                  [=](int64_t u, int64_t n) { store_part(to + u, load_part(from + u, n), n); });
}

template <typename real>
OSTINATO_INLINE void zero(real* to, int64_t unit, int64_t unit_end) {
  for_units<real>(unit, unit_end, [=](int64_t u, int64_t n) { store_part(to + u, Vector<real>{}, n); });
}

template <typename real>
OSTINATO_INLINE void add_and_clear(real* to, real* from, int64_t unit, int64_t unit_end) {
  for_units<real>(unit, unit_end, [=](int64_t u, int64_t n) {
    store_part(to + u, load_part(to + u, n) + load_part(from + u, n), n);
    store_part(from + u, Vector<real>{}, n);
  });
}

template <typename real>
OSTINATO_INLINE real* at(const Series<real>& series, int64_t row, int64_t t) {
  return series.data + row * series.row_stride + t * series.step_stride;
}

template <typename real>
OSTINATO_INLINE real* at(const Rows<real>& rows, int64_t row) {
  return rows.data + row * rows.row_stride;
}

// How far ahead, in elements, the same units of a later step lie: about kAheadBytes of what the scan reads
// next.
template <typename real>
OSTINATO_INLINE int64_t ahead_of(const Series<const real>& series, bool goes_down) {
  constexpr int64_t kAheadBytes = 2048;
  const int64_t stride = series.step_stride, bytes = (stride < 0 ? -stride : stride) * int64_t{sizeof(real)};
  if (bytes == 0) return 0;
  const int64_t steps = (kAheadBytes + bytes - 1) / bytes;
  return goes_down ? -steps * stride : steps * stride;
}

template <typename real>
OSTINATO_INLINE void prefetch(const real* at, int64_t ahead) {
  // An address, not a pointer: it may lie outside of the array, which a prefetch does not mind.
  __builtin_prefetch(
      reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(at) + ahead * int64_t{sizeof(real)}));
}

// The steps of one row in the order in which the scan meets them.
template <typename real>
struct Course {
  int64_t T;
  const uint8_t *mask, *resets;
  bool is_reverse, carries;

  Course(const Scan<real>& scan, int64_t row)
      : T(scan.T),
        mask(scan.mask ? scan.mask + row * scan.T : nullptr),
        resets(scan.resets ? scan.resets + row * scan.T : nullptr),
        is_reverse(scan.is_reverse),
        carries(scan.carries) {}

  int64_t time(int64_t s) const { return is_reverse ? T - 1 - s : s; }
  bool is_real(int64_t s) const { return !mask || mask[time(s)]; }
  bool starts_anew(int64_t s) const {
    if (!resets) return false;
    return is_reverse ? s > 0 && resets[T - s] : resets[s];
  }
  bool ends_anew() const { return resets && is_reverse && resets[0]; }

  // The step after which the state was what step s meets; kStart or kInitial where there is none. The search
  // costs the length of the gap, and every gap is searched once.
  int64_t source(int64_t s) const {
    for (;; --s) {
      if (starts_anew(s)) return kInitial;
      if (s == 0) return kStart;
      if (carries || is_real(s - 1)) return s - 1;
    }
  }
  static constexpr int64_t kStart = -1, kInitial = -2;
};

template <typename real, typename G>
void forward(const Scan<real>& scan, const ScanOutputs<real>& out, int64_t row, int64_t unit,
             int64_t unit_end) {
  const Course<real> course(scan, row);
  real* const state = at(out.state, row);
  const real* const initial = scan.initial.data ? at(scan.initial, row) : nullptr;
  int64_t ahead[G::kInputs];
  for (int k = 0; k < G::kInputs; ++k) ahead[k] = ahead_of(scan.inputs[k], scan.is_reverse);
  copy(state, at(scan.start, row), unit, unit_end);
  for (int64_t s = 0; s < scan.T; ++s) {
    const int64_t t = course.time(s);
    real* const y = at(out.y, row, t);
    if (course.starts_anew(s)) copy(state, initial, unit, unit_end);
    if (!course.is_real(s)) {
      if (scan.carries)
        copy<real>(y, state, unit, unit_end);
      else
        zero(y, unit, unit_end);
      continue;
    }
    const real* in[G::kInputs];
    for (int k = 0; k < G::kInputs; ++k) in[k] = at(scan.inputs[k], row, t);
    for_units<real>(unit, unit_end, [&](int64_t u, int64_t n) __attribute__((always_inline)) {
      Vector<real> v[G::kInputs], rate = {};
      for (int k = 0; k < G::kInputs; ++k) {
        if (G::kPrefetches) prefetch(in[k] + u, ahead[k]);
        v[k] = load_part(in[k] + u, n);
      }
      if (G::kHasRate) rate = load_part(scan.rate + u, n);
      const G gates(v, rate);
      const Vector<real> h = fma(gates.keep, load_part(state + u, n), gates.add);
      store_part(state + u, h, n);
      store_part(y + u, h, n);
    });
  }
  if (course.ends_anew()) copy(state, initial, unit, unit_end);
}

template <typename real, typename G>
void backward(const Scan<real>& scan, const ScanGradients<real>& out, int64_t row, int64_t unit,
              int64_t unit_end) {
  const Course<real> course(scan, row);
  const real* const start = at(scan.start, row);
  const real* const initial = scan.initial.data ? at(scan.initial, row) : nullptr;
  real* const d_state = at(out.d_start, row);
  real* const d_initial = initial ? at(out.d_initial, row) : nullptr;
  real* const d_rate = G::kHasRate ? at(out.d_rate, row) : nullptr;
  int64_t ahead[G::kInputs];
  for (int k = 0; k < G::kInputs; ++k) ahead[k] = ahead_of(scan.inputs[k], !scan.is_reverse);
  const int64_t ahead_y = ahead_of(out.y, !scan.is_reverse), ahead_d_y = ahead_of(out.d_y, !scan.is_reverse);
  if (out.d_state.data)
    copy(d_state, at(out.d_state, row), unit, unit_end);
  else
    zero(d_state, unit, unit_end);
  if (initial) zero(d_initial, unit, unit_end);
  if (G::kHasRate) zero(d_rate, unit, unit_end);
  if (course.ends_anew()) add_and_clear(d_initial, d_state, unit, unit_end);
  for (int64_t s = scan.T - 1; s >= 0; --s) {
    const int64_t t = course.time(s);
    const real* const d_y = out.d_y.data ? at(out.d_y, row, t) : nullptr;
    real* d_in[G::kInputs];
    for (int k = 0; k < G::kInputs; ++k)
      d_in[k] = out.d_inputs[k].data ? at(out.d_inputs[k], row, t) : nullptr;
    if (course.is_real(s)) {
      const int64_t source = course.source(s);
      const real* const h = source >= 0                        ? at(out.y, row, course.time(source))
                            : source == Course<real>::kInitial ? initial
                                                               : start;
      const real* in[G::kInputs];
      for (int k = 0; k < G::kInputs; ++k) in[k] = at(scan.inputs[k], row, t);
      for_units<real>(unit, unit_end, [&](int64_t u, int64_t n) __attribute__((always_inline)) {
        Vector<real> v[G::kInputs], d[G::kInputs], rate = {}, d_rate_u = {};
        for (int k = 0; k < G::kInputs; ++k) {
          if (G::kPrefetches) prefetch(in[k] + u, ahead[k]);
          v[k] = load_part(in[k] + u, n);
        }
        if (G::kPrefetches) prefetch(h + u, ahead_y);
        if (G::kHasRate) {
          rate = load_part(scan.rate + u, n);
          d_rate_u = load_part(d_rate + u, n);
        }
        const G gates(v, rate);
        Vector<real> g = load_part(d_state + u, n);
        if (d_y) {
          if (G::kPrefetches) prefetch(d_y + u, ahead_d_y);
          g = g + load_part(d_y + u, n);
        }
        gates.backward(g, load_part(h + u, n), d, &d_rate_u);
        for (int k = 0; k < G::kInputs; ++k)
          if (d_in[k]) store_part(d_in[k] + u, d[k], n);
        store_part(d_state + u, g * gates.keep, n);
        if (G::kHasRate) store_part(d_rate + u, d_rate_u, n);
      });
    } else {
      for (int k = 0; k < G::kInputs; ++k)
        if (d_in[k]) zero(d_in[k], unit, unit_end);
      if (d_y && scan.carries)
        for_units<real>(unit, unit_end, [=](int64_t u, int64_t n) {
          store_part(d_state + u, load_part(d_state + u, n) + load_part(d_y + u, n), n);
        });
    }
    if (course.starts_anew(s)) add_and_clear(d_initial, d_state, unit, unit_end);
  }
}

}  // namespace

#define OSTINATO_SCAN_ROW(pass, real)                                           \
  {pass<real, LinearGates<real>>,         pass<real, MinGruGates<real, true>>,  \
   pass<real, MinGruGates<real, false>>,  pass<real, MinLstmGates<real, true>>, \
   pass<real, MinLstmGates<real, false>>, pass<real, RgLruGates<real>>}

const ScanKernels* scan_kernels() {
  static const ScanKernels kernels = {
      OSTINATO_SCAN_ROW(forward, float),
      OSTINATO_SCAN_ROW(forward, double),
      OSTINATO_SCAN_ROW(backward, float),
      OSTINATO_SCAN_ROW(backward, double),
  };
  return &kernels;
}

}  // namespace OSTINATO_ISA
}  // namespace ostinato
