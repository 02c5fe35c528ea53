// How a sparse convolution is a product: images as one row of pixels a channel, with gaps of zeros between them.
//
// All images of a channel lie on a grid, one below the other, `Grid::height` rows of `Grid::width` columns each, the pixel
// (0, 0) in the corner. What is right of an image and below it is 0, and wide enough that a position of the kernel never
// sees another row or image by going too far. So a position is only a distance on the flat grid, and
//     y[o, t] = sum over entries (o, (c, position)) of value * x[c, t + distance of the position]
// is a product along t. What falls on gaps is left out when answers are stored. Backward, the distances are subtracted:
//     dx[c, t] = sum over entries (o, (c, position)) of value * dy[o, t - distance]
//     dots[entry] = sum over t of x[c, t] * dy[o, t - distance]
// With a stride, the pixels of an image that a position sees are those of one phase, (row % down, column % across): each
// phase counts as a channel of its own. The grid is made a tile at a time, as large as the cache likes; there is none in
// memory as a whole, and images are read and written as torch has them, (n, channels, height, width).

struct Window {  // as numbers come from pared.native.conv, which has checked that they go together
    int64_t images, in, out, height, width, kernel_height, kernel_width, down, across, top, left, high, wide, rows, columns;
};

// Pixels of a channel that lie together in memory, `step` apart, and on the grid.
struct Run {
    int64_t at, from, count;
};

// The images (n, channels, height, width), in phases of `down` and `across`.
template <class T>
struct Planes {
    T* data;
    int64_t channels, height, width, down, across;
    int64_t plane() const { return height * width; }
    int64_t tall(int64_t phase = 0) const { return (height - phase / across + down - 1) / down; }  // the largest is phase 0
    int64_t broad(int64_t phase = 0) const { return (width - phase % across + across - 1) / across; }
};

struct Grid {
    int64_t images, height, width;

    // Find what lies from column `begin` up to `end` of the flat grid; returns how many runs there are.
    template <class T>
    int64_t runs(const Planes<T>& of, int64_t phase, int64_t begin, int64_t end, Run* found) const {
        const int64_t tall = of.tall(phase), broad = of.broad(phase), image = of.channels * of.plane();
        int64_t count = 0;
        for (int64_t row = std::max<int64_t>(begin, 0) / width; row < images * height && row * width < end; ++row) {
            const int64_t r = row % height, low = std::max(begin, row * width), high = std::min(end, row * width + broad);
            if (r >= tall || low >= high) continue;
            found[count++] = {low - begin,
                              row / height * image + (r * of.down + phase / of.across) * of.width +
                                  (low - row * width) * of.across + phase % of.across,
                              high - low};
        }
        return count;
    }
};

// A walk over a pattern whose rows are those of `walked`'s channels, `group` of them each, and whose columns are those of
// `gathered`'s: forward one and as many as there are positions, backward the other way round.
template <class T>
struct Conv {
    Task<T> pattern;
    Planes<const T> gathered;
    Planes<T> walked;  // only the shape
    Grid grid;
    bool forward;
    int64_t positions;
    const int64_t *phase, *distance;  // of each position; the phase is a number among those that are used
    const int64_t* used;              // the phases that are used, by these numbers
    int64_t uses, low, high;          // the least and largest of what distances add to a column
    const int64_t *begin, *part;      // positions of phase f of what is walked: part[begin[f]] up to part[begin[f + 1]]
};
