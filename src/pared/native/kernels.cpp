// The kernels of pared: products of a sparse and a dense matrix (sweep.inc), transposes (turn.inc), convolutions with a sparse
// weight (conv.h, conv.inc), and steps on the L_p sphere (sphere.inc).
//
// Products are for features-major activations: row f of a (features, batch) matrix is one feature of all samples, so that
// an entry of the pattern works on whole registers of samples.
//
// One walk serves three tasks. The rows of a pattern in CSR (crow, col) are walked, and each entry i reads row col[i] of
// the dense matrix `gathered`; the entry's number in `values` and `dots` is perm[i], or i where there is no perm:
//     product  out[r, :] = bias[r] + sum over i in row r of values[i] * gathered[col[i], :]
//     dots     dots[i] = <held[r, :], gathered[col[i], :]>
//     both     at once, reading what is gathered once: the backward pass, along the transposed pattern
//
// Every number is computed by one thread in one order, so that results do not depend on how many threads there are.
// Pointers and lengths are trusted. Indices are not: each thread looks through those of its rows before it follows them, as
// patterns can be made by hand, and changed after they were checked.
//
// To add a kernel: a Task of its own or a walk of its own, an entry point below, its signature in loading.py, VERSION + 1.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(_OPENMP)
#include <omp.h>
#else
#include <thread>
#endif

#if defined(_WIN32)
#define PARED_EXPORT extern "C" __declspec(dllexport)
#else
#define PARED_EXPORT extern "C" __attribute__((visibility("default")))
#endif
#define PARED_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define PARED_UNROLL _Pragma("clang loop unroll(full)")
#else
#define PARED_UNROLL _Pragma("GCC unroll 16")
#endif

namespace {

constexpr int VERSION = 7;
constexpr int NO_MEMORY = 1, BAD_PATTERN = 2;

// Both may be set by whoever compiles, as tests do to reach every branch with small matrices.
#if !defined(PARED_CACHE)
#define PARED_CACHE (512 * 1024)
#endif
#if !defined(PARED_SHARE)
#define PARED_SHARE (1 << 18)
#endif
constexpr int64_t CACHE = PARED_CACHE;  // bytes of gathered rows that are read over and over: half of a common second cache
constexpr int64_t SHARE = PARED_SHARE;  // multiplications below which a thread costs more than it brings

constexpr size_t KEPT = size_t(32) << 20;
constexpr int LOT = 256;  // rows that are sorted together

template <class T>
struct Task {
    int64_t rows, inner, batch;  // of the pattern; columns of the dense matrices, which are contiguous
    const int32_t *crow, *col, *perm;
    const T *values, *bias, *gathered, *held;
    T *out, *dots;
    bool relu;  // of a product: numbers below 0 become 0
};

// A step of weights on the L_p sphere, a neuron a row; see sphere.inc. No dual vector: the step of the weights themselves.
// Row r is numbers crow[r] to crow[r + 1], or where there is no crow all rows are as long.
template <class T>
struct Sphere {
    int64_t rows, entries;
    const int32_t* crow;  // may be missing
    const T* grad;
    T* momentum;          // may be missing
    const uint8_t* mask;  // may be missing
    T *dual, *weight;
    double gamma, sign, lr, q;
    bool nesterov, scaled, clean;  // scaled: the dual vector is scaled by its largest entry first, since it may be short

    int64_t begin(int64_t row) const { return crow ? crow[row] : entries / rows * row; }
    int64_t length(int64_t row) const { return crow ? crow[row + 1] - crow[row] : entries / rows; }
};

// Scratch that is given back, and no exception when there is none.
template <class T>
struct Memory {
    T* at;
    bool wanted;
    explicit Memory(int64_t count) : at(nullptr), wanted(count > 0) {
        if (wanted) at = static_cast<T*>(std::malloc(size_t(count) * sizeof(T)));
    }
    ~Memory() { std::free(at); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    bool failed() const { return wanted && !at; }
};

// Scratch of a thread that is kept from one call to the next, as new pages cost more than what is done with them; large
// pages where there are any, for small ones fall together in the second cache as luck has it.
struct Kept {
    void* at = nullptr;
    size_t bytes = 0;
    ~Kept() { std::free(at); }
    void* get(size_t wanted) {
        constexpr size_t PAGE = size_t(2) << 20;
        if (wanted > bytes) {
            std::free(at);
            bytes = (wanted + PAGE - 1) / PAGE * PAGE;
#if defined(__linux__)
            at = std::aligned_alloc(PAGE, bytes);
            if (at) madvise(at, bytes, MADV_HUGEPAGE);
#else
            at = std::malloc(bytes);
#endif
            if (!at) bytes = 0;
        }
        return at;
    }
};

// One of three pieces of it, for things that are needed at once; beyond `KEPT` bytes none, as nobody wants to lose that much.
enum Use { COLUMNS, EVEN, ODD };
void* kept(Use use, size_t bytes) {
    thread_local Kept pieces[3];
    return bytes <= KEPT ? pieces[use].get(bytes) : nullptr;
}

// Batches that do not fill a register: one or a few columns, one after the other.
template <class T, bool product, bool dots>
int part_narrow(const Task<T>& task, int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
        const int32_t begin = task.crow[r], end = task.crow[r + 1];
        for (int64_t c = 0; c < task.batch; ++c) {
            const T* gathered = task.gathered + c;
            const T held = dots ? task.held[r * task.batch + c] : T(0);
            T sums[4] = {};  // several, since each addition waits for the one before
            for (int32_t i = begin; i < end; ++i) {
                const T row = gathered[task.col[i] * task.batch];
                const int32_t index = task.perm ? task.perm[i] : i;
                if (product) sums[(i - begin) & 3] += task.values[index] * row;
                if (dots) task.dots[index] = c ? task.dots[index] + held * row : held * row;
            }
            const T sum = (task.bias ? task.bias[r] : T(0)) + ((sums[0] + sums[1]) + (sums[2] + sums[3]));
            if (product) task.out[r * task.batch + c] = task.relu && sum < 0 ? T(0) : sum;
        }
    }
    return 0;
}

#include "conv.h"

}  // namespace

#define PARED_ISA portable
#define PARED_BYTES 16
#define PARED_SUMS 8
#if defined(__aarch64__)
#define PARED_WIDE 8
#define PARED_BOTH 8
#else
#define PARED_WIDE 8
#define PARED_BOTH 4
#endif
namespace {
#include "sweep.inc"
#include "turn.inc"
#include "conv.inc"
#include "sphere.inc"
}
#undef PARED_ISA
#undef PARED_BYTES
#undef PARED_SUMS
#undef PARED_WIDE
#undef PARED_BOTH

#if defined(__x86_64__)
#define PARED_X86 1

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define PARED_ISA avx2
#define PARED_BYTES 32
#define PARED_SUMS 8
#define PARED_WIDE 8
#define PARED_BOTH 4
namespace {
#include "sweep.inc"
#include "turn.inc"
#include "conv.inc"
#include "sphere.inc"
}
#undef PARED_ISA
#undef PARED_BYTES
#undef PARED_SUMS
#undef PARED_WIDE
#undef PARED_BOTH
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#endif
#define PARED_ISA avx512
#define PARED_BYTES 64
#define PARED_SUMS 16
#define PARED_WIDE 8
#define PARED_BOTH 8
namespace {
#include "sweep.inc"
#include "turn.inc"
#include "conv.inc"
#include "sphere.inc"
}
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace {

// 0 portable, 1 AVX2 with FMA, 2 AVX-512: the best this processor has.
int best_isa() {
#if defined(PARED_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

// Whether rows `first` to `last`, whose ends are right, have ascending columns and numbers inside what they index.
template <class T>
bool sound(const Task<T>& task, int64_t entries, int isa, int64_t first, int64_t last) {
    const int64_t begin = task.crow[first], end = task.crow[last];
    int64_t descents = 0;
    auto inside = portable::inside<T>;
#if defined(PARED_X86)
    if (isa >= 2) inside = avx512::inside<T>;
    else if (isa >= 1) inside = avx2::inside<T>;
#endif
    if (!inside(task, entries, begin, end, descents)) return false;
    for (int64_t r = first; r < last; ++r) {
        const int32_t start = task.crow[r];
        if (start > begin && start < task.crow[r + 1]) descents -= task.col[start] <= task.col[start - 1];
    }
    return descents == 0;
}

template <class T, bool product, bool dots>
int part(const Task<T>& task, int64_t entries, int isa, int64_t first, int64_t last) {
    if (first >= last) return 0;
    if (!sound(task, entries, isa, first, last)) return BAD_PATTERN;
    if constexpr (product && !dots)
        if (task.batch == 1) {
#if defined(PARED_X86)
            if (isa >= 1) return avx2::line<T>(task, first, last);
#endif
            return portable::line<T>(task, first, last);
        }
    if (task.batch < 16 / int64_t(sizeof(T))) return part_narrow<T, product, dots>(task, first, last);
#if defined(PARED_X86)
    if (isa >= 2 && task.batch >= 64 / int64_t(sizeof(T))) return avx512::part<T, product, dots>(task, first, last);
    if (isa >= 1 && task.batch >= 32 / int64_t(sizeof(T))) return avx2::part<T, product, dots>(task, first, last);
#endif
    return portable::part<T, product, dots>(task, first, last);
}

// Whether the ends of rows ascend from 0 to `entries`.
bool ordered(const int32_t* crow, int64_t rows, int64_t entries) {
    bool right = crow[0] == 0 && crow[rows] == entries;
    for (int64_t r = 0; r < rows; ++r) right &= crow[r] <= crow[r + 1];
    return right;
}

// The first row of share `number` of `count`, by entries, with rows counted too since empty ones cost something; of groups of
// `group` rows the first group.
int64_t share(const int32_t* crow, int64_t rows, int64_t number, int64_t count, int64_t group = 1) {
    if (number == count) return rows / group;
    const int64_t target = (int64_t(crow[rows]) + 4 * rows) * number / count;
    int64_t low = 0, high = rows / group;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (crow[middle * group] + 4 * middle * group < target)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// Call `one` for 0 to count - 1, each in a thread of its own, and return the largest answer.
template <class One>
int spread(int count, One call) {
    if (count == 1) return call(0);
    int codes[256] = {};
    auto one = [&](int number) { codes[number] = call(number); };
#if defined(_OPENMP)
#pragma omp parallel for num_threads(count) schedule(static, 1)
    for (int number = 0; number < count; ++number) one(number);
#else
    std::thread others[256];
    int started = 0;
    try {
        for (; started < count - 1; ++started) others[started] = std::thread(one, started + 1);
    } catch (...) {  // no more threads to be had: what is left is done here
    }
    for (int number = started + 1; number < count; ++number) one(number);
    one(0);
    for (int number = 0; number < started; ++number) others[number].join();
#endif
    return *std::max_element(codes, codes + count);
}

int threads_for(int64_t work, int64_t rows, int threads) {
    return int(std::max<int64_t>(1, std::min<int64_t>({threads, work / SHARE, rows, 256})));
}

template <class T, bool product, bool dots>
int run(const Task<T>& task, int64_t entries, int isa, int threads) {
    if (!ordered(task.crow, task.rows, entries)) return BAD_PATTERN;
    if (dots && task.batch == 0) std::fill(task.dots, task.dots + entries, T(0));
    if (task.batch == 0) return 0;
    const int best = best_isa();
    if (isa < 0 || isa > best) isa = best;
    const int count = threads_for(int64_t(entries) * task.batch, task.rows, threads);
    if (count == 1) return part<T, product, dots>(task, entries, isa, 0, task.rows);
    return spread(count, [&](int number) {
        return part<T, product, dots>(task, entries, isa, share(task.crow, task.rows, number, count),
                                      share(task.crow, task.rows, number + 1, count));
    });
}

template <class T>
int turn_part(const T* from, T* to, int64_t rows, int64_t columns, int isa, int64_t first, int64_t last) {
#if defined(PARED_X86)
    if (isa >= 2) return avx512::turn<T>(from, to, rows, columns, first, last);
    if (isa >= 1) return avx2::turn<T>(from, to, rows, columns, first, last);
#endif
    return portable::turn<T>(from, to, rows, columns, first, last);
}

template <class T>
int turn(const T* from, T* to, int64_t rows, int64_t columns, int isa, int threads) {
    const int best = best_isa();
    if (isa < 0 || isa > best) isa = best;
    const int count = threads_for(rows * columns, columns, threads);
    return spread(count, [&](int number) {
        return turn_part<T>(from, to, rows, columns, isa, columns * number / count, columns * (number + 1) / count);
    });
}

// A sparse layer of a stack: out (rows, batch) = relu(A in (inner, batch) + bias).
template <class T>
struct Link {
    int64_t rows, inner, entries;
    const int32_t *crow, *col;
    const T *values, *bias;
    int64_t relu;
};

// Layers one after the other; what lies between them is where that of the last call was, as new memory costs more than small
// layers do. x is (inner, batch), or (batch, inner) and is turned first; out is (rows, batch) of the last.
template <class T>
int stack(const Link<T>* links, int64_t count, int64_t batch, const T* x, bool by_rows, T* out, int isa, int threads) {
    int64_t most = by_rows ? links[0].inner : 0;
    for (int64_t k = 0; k + 1 < count; ++k) most = std::max(most, links[k].rows);
    const size_t bytes = size_t(most * batch) * sizeof(T);
    Memory<T> even(bytes > KEPT ? most * batch : 0), odd(bytes > KEPT ? most * batch : 0);
    T* const between[2] = {bytes > KEPT ? even.at : static_cast<T*>(kept(EVEN, bytes)),
                           bytes > KEPT ? odd.at : static_cast<T*>(kept(ODD, bytes))};
    if (bytes && !(between[0] && between[1])) return NO_MEMORY;
    if (by_rows && batch) {
        if (const int code = turn<T>(x, between[1], batch, links[0].inner, isa, threads)) return code;
        x = between[1];
    }
    for (int64_t k = 0; k < count; ++k) {
        const Link<T>& link = links[k];
        T* const to = k + 1 < count ? between[k & 1] : out;
        const Task<T> task{link.rows,   link.inner, batch, link.crow, link.col, nullptr, link.values,
                           link.bias, x,          nullptr, to,       nullptr,  link.relu != 0};
        if (const int code = run<T, true, false>(task, link.entries, isa, threads)) return code;
        x = to;
    }
    return 0;
}

template <class T>
int step_part(const Sphere<T>& task, int isa, int64_t first, int64_t last) {
    const int64_t columns = task.entries / task.rows;  // of ragged rows, what most are about as long as
#if defined(PARED_X86)
    if (isa >= 2 && columns >= 64 / int64_t(sizeof(T))) return avx512::step<T>(task, first, last);
    if (isa >= 1 && columns >= 32 / int64_t(sizeof(T))) return avx2::step<T>(task, first, last);
#endif
    return portable::step<T>(task, first, last);
}

template <class T>
int step_sphere(const Sphere<T>& task, int isa, int threads) {
    if (task.rows == 0) return task.entries == 0 ? 0 : BAD_PATTERN;
    if (task.crow && !ordered(task.crow, task.rows, task.entries)) return BAD_PATTERN;
    const int best = best_isa();
    if (isa < 0 || isa > best) isa = best;
    const int count = threads_for(8 * task.entries, task.rows, threads);
    const auto first = [&](int number) {
        return task.crow ? share(task.crow, task.rows, number, count) : task.rows * number / count;
    };
    return spread(count, [&](int number) { return step_part<T>(task, isa, first(number), first(number + 1)); });
}

}  // namespace

PARED_EXPORT int pared_version() { return VERSION; }
PARED_EXPORT int pared_best_isa() { return best_isa(); }

PARED_EXPORT int pared_threading() {
#if defined(_OPENMP)
    return 1;
#else
    return 0;
#endif
}

// out (rows, batch) = the pattern's matrix times gathered (inner, batch), plus bias (rows) if there is one, cut off at 0 by relu.
#define PARED_PRODUCT(name, T)                                                                                              \
    PARED_EXPORT int name(int64_t rows, int64_t inner, int64_t batch, int64_t entries, const int32_t* crow,                 \
                          const int32_t* col, const int32_t* perm, const T* values, const T* bias, const T* gathered,       \
                          T* out, int relu, int isa, int threads) {                                                         \
        return run<T, true, false>({rows, inner, batch, crow, col, perm, values, bias, gathered, nullptr, out, nullptr,     \
                                    relu != 0},                                                                              \
                                   entries, isa, threads);                                                                  \
    }

// dots (entries) = the rows of held (rows, batch) times those of gathered (inner, batch), where the pattern has an entry.
#define PARED_DOTS(name, T)                                                                                                 \
    PARED_EXPORT int name(int64_t rows, int64_t inner, int64_t batch, int64_t entries, const int32_t* crow,                 \
                          const int32_t* col, const int32_t* perm, const T* held, const T* gathered, T* dots, int isa,      \
                          int threads) {                                                                                    \
        return run<T, false, true>({rows, inner, batch, crow, col, perm, nullptr, nullptr, gathered, held, nullptr, dots,   \
                                    false},                                                                                  \
                                   entries, isa, threads);                                                                  \
    }

// Both in one walk.
#define PARED_BACKWARD(name, T)                                                                                             \
    PARED_EXPORT int name(int64_t rows, int64_t inner, int64_t batch, int64_t entries, const int32_t* crow,                 \
                          const int32_t* col, const int32_t* perm, const T* values, const T* held, const T* gathered,       \
                          T* out, T* dots, int isa, int threads) {                                                          \
        return run<T, true, true>({rows, inner, batch, crow, col, perm, values, nullptr, gathered, held, out, dots,         \
                                   false},                                                                                  \
                                  entries, isa, threads);                                                                   \
    }

#define PARED_STACK(name, T)                                                                                                \
    PARED_EXPORT int name(const Link<T>* links, int64_t count, int64_t batch, const T* x, T* out, int by_rows, int isa,     \
                          int threads) {                                                                                    \
        return stack<T>(links, count, batch, x, by_rows != 0, out, isa, threads);                                           \
    }

PARED_STACK(pared_stack_f32, float)
PARED_STACK(pared_stack_f64, double)
PARED_PRODUCT(pared_product_f32, float)
PARED_PRODUCT(pared_product_f64, double)
PARED_DOTS(pared_dots_f32, float)
PARED_DOTS(pared_dots_f64, double)
PARED_BACKWARD(pared_backward_f32, float)
PARED_BACKWARD(pared_backward_f64, double)

// to (columns, rows) = the transpose of from (rows, columns); the two do not overlap.
#define PARED_TURN(name, T)                                                                                                 \
    PARED_EXPORT int name(int64_t rows, int64_t columns, const T* from, T* to, int isa, int threads) {                      \
        return turn<T>(from, to, rows, columns, isa, threads);                                                              \
    }

PARED_TURN(pared_turn_f32, float)
PARED_TURN(pared_turn_f64, double)

// One step on the sphere: momentum, dual vector and weight, each (entries), change in place; see Sphere.
#define PARED_SPHERE(name, T)                                                                                               \
    PARED_EXPORT int name(int64_t rows, int64_t entries, const int32_t* crow, const T* grad, T* momentum,                   \
                          const uint8_t* mask, T* dual, T* weight, double gamma, double sign, double lr, double q,          \
                          int nesterov, int scaled, int clean, int isa, int threads) {                                      \
        return step_sphere<T>({rows, entries, crow, grad, momentum, mask, dual, weight, gamma, sign, lr, q, nesterov != 0,  \
                               scaled != 0, clean != 0},                                                                    \
                              isa, threads);                                                                                \
    }

PARED_SPHERE(pared_sphere_f32, float)
PARED_SPHERE(pared_sphere_f64, double)

#include "conv_run.inc"
