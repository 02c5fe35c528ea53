// The kernels on random patterns and rows, each array exactly as long as it must be, against plain loops: for `make sanitize`, which
// compiles this with the address and undefined-behaviour sanitizers, a tiny cache and a tiny share, to reach every branch.

#include "../../src/pared/native/kernels.cpp"

#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

namespace {

std::mt19937 engine(0);

int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine); }

// Exactly `count` numbers on the heap, so that one too far is seen.
template <class T>
std::unique_ptr<T[]> numbers(int64_t count) {
    std::unique_ptr<T[]> made(new T[size_t(count)]);
    for (int64_t i = 0; i < count; ++i) made[i] = T(std::normal_distribution<double>()(engine));
    return made;
}

template <class T>
bool close(const T* got, const std::vector<double>& expected, const char* what) {
    const double tolerance = sizeof(T) == 4 ? 1e-4 : 1e-11;
    for (size_t i = 0; i < expected.size(); ++i)
        if (!(std::abs(double(got[i]) - expected[i]) <= tolerance * (1 + std::abs(expected[i])))) {
            std::printf("%s differs at %zu: %g, expected %g\n", what, i, double(got[i]), expected[i]);
            return false;
        }
    return true;
}

template <class T, class Product, class Dots, class Backward, class Stack>
bool once(Product product, Dots dots, Backward backward, Stack stack) {
    const int64_t rows = pick(1, 40), inner = pick(1, 90), batch = pick(0, 9) > 1 ? pick(1, 300) : pick(0, 1) ? pick(0, 17) : 1;
    const double density = std::uniform_real_distribution<double>(0, pick(0, 2) / 2.0)(engine);
    std::vector<int32_t> crow{0}, col;
    for (int64_t r = 0; r < rows; ++r) {
        const bool empty = pick(0, 5) == 0;
        for (int64_t c = 0; c < inner; ++c)
            if (!empty && std::uniform_real_distribution<double>()(engine) < density) col.push_back(int32_t(c));
        crow.push_back(int32_t(col.size()));
    }
    const int64_t entries = int64_t(col.size());
    std::unique_ptr<int32_t[]> perm;
    if (pick(0, 1)) {
        perm.reset(new int32_t[size_t(entries)]);
        for (int64_t i = 0; i < entries; ++i) perm[i] = int32_t(i);
        std::shuffle(perm.get(), perm.get() + entries, engine);
    }
    auto values = numbers<T>(entries), bias = numbers<T>(rows), gathered = numbers<T>(inner * batch);
    auto held = numbers<T>(rows * batch), out = numbers<T>(rows * batch), found = numbers<T>(entries);
    col.shrink_to_fit();
    crow.shrink_to_fit();
    const int isa = pick(-1, 2), threads = pick(1, 4);
    const bool biased = pick(0, 1), relu = pick(0, 1);
    std::vector<double> plain(rows * batch), offset(rows * batch), dotted(entries);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t b = 0; b < batch; ++b) {
            double sum = 0;
            for (int32_t i = crow[r]; i < crow[r + 1]; ++i) {
                const int32_t number = perm ? perm[i] : i;
                sum += double(values[number]) * gathered[col[i] * batch + b];
                dotted[number] += double(held[r * batch + b]) * gathered[col[i] * batch + b];
            }
            plain[r * batch + b] = sum;
            offset[r * batch + b] = sum + (biased ? double(bias[r]) : 0.0);
            if (relu) offset[r * batch + b] = std::max(0.0, offset[r * batch + b]);
        }
    const int32_t *ends = crow.data(), *columns = col.data();
    bool good = product(rows, inner, batch, entries, ends, columns, perm.get(), values.get(), biased ? bias.get() : nullptr,
                        gathered.get(), out.get(), relu, isa, threads) == 0;
    good = good && close(out.get(), offset, "product");
    if (!perm) {  // a layer, and one behind it that gives all of it back
        std::vector<int32_t> same_ends(rows + 1), same(rows);
        for (int64_t r = 0; r < rows; ++r) same_ends[r + 1] = int32_t(r + 1), same[r] = int32_t(r);
        const std::vector<T> ones(rows, T(1));
        const Link<T> links[] = {
            {rows, inner, entries, ends, columns, values.get(), biased ? bias.get() : nullptr, relu},
            {rows, rows, rows, same_ends.data(), same.data(), ones.data(), nullptr, 0},
        };
        auto turned = numbers<T>(inner * batch);
        for (int64_t f = 0; f < inner; ++f)
            for (int64_t b = 0; b < batch; ++b) turned[b * inner + f] = gathered[f * batch + b];
        const bool by_rows = pick(0, 1);
        out = numbers<T>(rows * batch);
        good = good && stack(links, pick(1, 2), batch, by_rows ? turned.get() : gathered.get(), out.get(), by_rows, isa,
                             threads) == 0;
        good = good && close(out.get(), offset, "stack");
    }
    good = good && dots(rows, inner, batch, entries, ends, columns, perm.get(), held.get(), gathered.get(), found.get(), isa,
                        threads) == 0;
    good = good && close(found.get(), dotted, "dots");
    out = numbers<T>(rows * batch);
    found = numbers<T>(entries);
    good = good && backward(rows, inner, batch, entries, ends, columns, perm.get(), values.get(), held.get(), gathered.get(),
                            out.get(), found.get(), isa, threads) == 0;
    good = good && close(out.get(), plain, "backward's product") && close(found.get(), dotted, "backward's dots");
    if (entries && batch) {  // an index that is wrong is found before it is followed
        const int32_t wrong[] = {-1, int32_t(inner), INT32_MAX, INT32_MIN};
        int32_t* index = perm && pick(0, 1) ? perm.get() : col.data();
        int32_t& changed = index[pick(0, int(entries) - 1)];
        const int32_t right = changed;
        changed = index == perm.get() && pick(0, 1) ? int32_t(entries) : wrong[index == perm.get() ? 3 * pick(0, 1) : pick(0, 3)];
        good = good && backward(rows, inner, batch, entries, ends, columns, perm.get(), values.get(), held.get(),
                                gathered.get(), out.get(), found.get(), isa, threads) == BAD_PATTERN;
        changed = right;
    }
    crow[rows] += 1;
    good = good && product(rows, inner, batch, entries, crow.data(), columns, perm.get(), values.get(), nullptr,
                           gathered.get(), out.get(), 0, isa, threads) == BAD_PATTERN;
    if (!good) std::printf("rows %ld, inner %ld, batch %ld, isa %d, threads %d\n", rows, inner, batch, isa, threads);
    return good;
}

template <class T, class Turn>
bool once_turned(Turn turn) {
    const int64_t rows = pick(0, 70), columns = pick(0, 70);
    auto from = numbers<T>(rows * columns), to = numbers<T>(rows * columns);
    bool good = turn(rows, columns, from.get(), to.get(), pick(-1, 2), pick(1, 4)) == 0;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) good = good && to[c * rows + r] == from[r * columns + c];
    if (!good) std::printf("the transpose of %ld rows and %ld columns is another one\n", rows, columns);
    return good;
}

// A convolution of random shape, forward and backward, against loops over pixels.
template <class T, class Forward, class Backward>
bool once_over_images(Forward forward, Backward backward) {
    Window of{};
    of.images = pick(0, 5), of.in = pick(1, 6), of.out = pick(1, 7), of.height = pick(1, 12), of.width = pick(1, 40);
    of.kernel_height = pick(1, 3), of.kernel_width = pick(1, 3), of.down = pick(1, 3), of.across = pick(1, 3);
    of.top = pick(0, 3), of.left = pick(0, 3), of.high = pick(1, 2), of.wide = pick(1, 2);
    const int64_t tall = of.height + of.top + pick(0, 3) - of.high * (of.kernel_height - 1);
    const int64_t broad = of.width + of.left + pick(0, 3) - of.wide * (of.kernel_width - 1);
    if (tall < 1 || broad < 1) return true;
    of.rows = (tall - 1) / of.down + 1, of.columns = (broad - 1) / of.across + 1;
    const int64_t positions = of.kernel_height * of.kernel_width, inner = of.in * positions;
    std::vector<int32_t> crow{0}, col, crow_t{0}, col_t, perm;
    for (int64_t o = 0; o < of.out; ++o) {
        for (int64_t k = 0; k < inner; ++k)
            if (pick(0, 2) == 0) col.push_back(int32_t(k));
        crow.push_back(int32_t(col.size()));
    }
    for (int64_t k = 0; k < inner; ++k) {
        for (int64_t o = 0; o < of.out; ++o)
            for (int32_t i = crow[o]; i < crow[o + 1]; ++i)
                if (col[i] == k) col_t.push_back(int32_t(o)), perm.push_back(i);
        crow_t.push_back(int32_t(col_t.size()));
    }
    for (auto* index : {&crow, &col, &crow_t, &col_t, &perm}) index->shrink_to_fit();
    const int64_t entries = int64_t(col.size()), pixels = of.height * of.width, answers = of.rows * of.columns;
    auto values = numbers<T>(entries), bias = numbers<T>(of.out), x = numbers<T>(of.images * of.in * pixels);
    auto dy = numbers<T>(of.images * of.out * answers), y = numbers<T>(of.images * of.out * answers);
    auto dx = numbers<T>(of.images * of.in * pixels), found = numbers<T>(entries);
    std::vector<double> plain(of.images * of.out * answers), back(of.images * of.in * pixels), dotted(entries);
    for (int64_t n = 0; n < of.images; ++n)
        for (int64_t o = 0; o < of.out; ++o)
            for (int64_t t = 0; t < answers; ++t) {
                const int64_t at = (n * of.out + o) * answers + t;
                plain[at] = bias[o];
                for (int32_t i = crow[o]; i < crow[o + 1]; ++i) {
                    const int64_t k = col[i] % positions;
                    const int64_t r = t / of.columns * of.down + k / of.kernel_width * of.high - of.top;
                    const int64_t c = t % of.columns * of.across + k % of.kernel_width * of.wide - of.left;
                    if (r < 0 || c < 0 || r >= of.height || c >= of.width) continue;
                    const int64_t pixel = (n * of.in + col[i] / positions) * pixels + r * of.width + c;
                    plain[at] += double(values[i]) * x[pixel];
                    back[pixel] += double(values[i]) * dy[at];
                    dotted[i] += double(dy[at]) * x[pixel];
                }
            }
    const int isa = pick(-1, 2), threads = pick(1, 4), both = pick(0, 2);
    const auto* window = reinterpret_cast<const int64_t*>(&of);
    bool good = forward(window, entries, crow.data(), col.data(), values.get(), bias.get(), x.get(), y.get(), isa, threads) == 0;
    good = good && close(y.get(), plain, "conv");
    good = good && backward(window, entries, crow_t.data(), col_t.data(), perm.data(), values.get(), dy.get(), x.get(),
                            both == 1 ? nullptr : dx.get(), both == 2 ? nullptr : found.get(), isa, threads) == 0;
    good = good && (both == 1 || close(dx.get(), back, "conv's dx")) && (both == 2 || close(found.get(), dotted, "conv's dots"));
    if (entries && of.images) {
        col[pick(0, int(entries) - 1)] = pick(0, 1) ? int32_t(inner) : -1;
        good = good && forward(window, entries, crow.data(), col.data(), values.get(), nullptr, x.get(), y.get(), isa, threads) ==
                           BAD_PATTERN;
    }
    if (!good) std::printf("images %ld of %ldx%ld, isa %d, threads %d\n", of.images, of.height, of.width, isa, threads);
    return good;
}

double norm(const std::vector<double>& x, double r) {
    double most = 0, sum = 0;
    for (double one : x) most = std::max(most, std::abs(one));
    for (double one : x) sum += most > 0 ? std::pow(std::abs(one) / most, r) : 0;
    return most > 0 ? most * std::pow(sum, 1 / r) : 1;  // rows of zeros stay
}

double signed_power(double x, double t) { return x == 0 ? 0 : std::copysign(std::pow(std::abs(x), t), x); }

// One step on the sphere, row by row as the equations say.
template <class T, class Step>
bool once_on_sphere(Step step) {
    const int64_t rows = pick(1, 12), columns = pick(1, 9) > 1 ? pick(1, 80) : 1;
    const bool ragged = pick(0, 1);
    std::vector<int32_t> crow{0};
    for (int64_t r = 0; r < rows; ++r) crow.push_back(crow.back() + int32_t(ragged ? pick(0, pick(0, 60)) : columns));
    const int64_t count = crow[rows];
    crow.shrink_to_fit();
    const double p = 1 / std::uniform_real_distribution<double>(0.3, 0.9)(engine), q = p / (p - 1);
    const double gamma = 0.9, sign = pick(0, 1) ? 1 : -1, lr = pick(0, 1) ? 0.01 : 0.2;
    const bool remembers = pick(0, 2), nesterov = remembers && pick(0, 1), direct = pick(0, 1), scaled = pick(0, 1);
    auto grad = numbers<T>(count), weight = numbers<T>(count);
    auto momentum = remembers ? numbers<T>(count) : nullptr, dual = direct ? nullptr : numbers<T>(count);
    std::unique_ptr<uint8_t[]> mask;
    if (pick(0, 1)) {
        mask.reset(new uint8_t[size_t(count)]);
        for (int64_t i = 0; i < count; ++i) {
            mask[i] = pick(0, 3) > 0;
            if (!mask[i]) weight[i] = 0;
            if (!mask[i] && dual) dual[i] = 0;
        }
    }
    if (pick(0, 3) == 0)
        for (int64_t c = 0; c < crow[1]; ++c) grad[c] = 0;
    std::vector<double> memory(count), dualed(count), weights(count);
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t begin = crow[r], length = crow[r + 1] - begin;
        std::vector<double> d(length), moved(length);
        for (int64_t c = 0; c < length; ++c) {
            const int64_t i = begin + c;
            const double live = mask ? mask[i] : 1, pull = sign * grad[i] * live;
            if (remembers) memory[i] = (gamma * momentum[i]) * live + pull;
            d[c] = remembers ? (nesterov ? pull + gamma * memory[i] : memory[i]) : pull;
        }
        const double size = norm(d, q);
        std::vector<double> from(length);
        for (int64_t c = 0; c < length; ++c) from[c] = direct ? weight[begin + c] : dual[begin + c];
        const double scale = norm(from, direct ? p : q);
        for (int64_t c = 0; c < length; ++c) {
            const int64_t i = begin + c;
            if (direct)
                weight[i] = T(from[c] / scale);
            else
                dual[i] = T(from[c] / scale);
            moved[c] = (1 - lr) * from[c] / scale - lr * (direct ? signed_power(d[c] / size, q - 1) : d[c] / size);
        }
        const double all = norm(moved, direct ? p : q);
        for (int64_t c = 0; c < length; ++c) {
            const int64_t i = begin + c;
            dualed[i] = moved[c] / all;
            weights[i] = direct ? moved[c] / all : signed_power(dualed[i], q - 1);
        }
    }
    const int isa = pick(-1, 2), threads = pick(1, 4);
    const auto run = [&](int64_t entries) {
        return step(rows, entries, ragged ? crow.data() : nullptr, grad.get(), momentum.get(), mask.get(), dual.get(),
                    weight.get(), gamma, sign, lr, q, nesterov, scaled, pick(0, 1), isa, threads);
    };
    bool good = run(count) == 0;
    good = good && close(weight.get(), weights, "weight") && (!dual || close(dual.get(), dualed, "dual vector")) &&
           (!momentum || close(momentum.get(), memory, "momentum"));
    if (ragged) {  // rows that are wrong are found before they are followed
        good = good && run(count + 1) == BAD_PATTERN;
        crow[pick(0, int(rows))] = pick(0, 1) ? -1 : int32_t(count) + 1;
        good = good && run(count) == BAD_PATTERN;
    }
    if (!good) std::printf("rows %ld, entries %ld, ragged %d, p %g, lr %g, direct %d, scaled %d, isa %d, threads %d\n", rows,
                           count, ragged, p, lr, direct, scaled, isa, threads);
    return good;
}

}  // namespace

int main() {
    for (int n = 0; n < 1500; ++n)
        if (!once<float>(pared_product_f32, pared_dots_f32, pared_backward_f32, pared_stack_f32) ||
            !once<double>(pared_product_f64, pared_dots_f64, pared_backward_f64, pared_stack_f64))
            return 1;
    for (int n = 0; n < 1500; ++n)
        if (!once_on_sphere<float>(pared_sphere_f32) || !once_on_sphere<double>(pared_sphere_f64)) return 1;
    for (int n = 0; n < 1500; ++n)
        if (!once_turned<float>(pared_turn_f32) || !once_turned<double>(pared_turn_f64)) return 1;
    for (int n = 0; n < 1500; ++n)
        if (!once_over_images<float>(pared_conv_f32, pared_conv_backward_f32) ||
            !once_over_images<double>(pared_conv_f64, pared_conv_backward_f64))
            return 1;
    std::printf("3000 random patterns, 3000 transposes, 3000 convolutions and 3000 steps on spheres, best instruction set %d: "
                "nothing found\n", pared_best_isa());
    return 0;
}
