#include "resample.h"

#include <algorithm>
#include <cmath>

namespace svit {
namespace {

// One axis of a separable filter: of each new place the first old one, and the weights from there.
struct Axis {
    std::vector<int> first;
    std::vector<std::vector<int>> weights;
};

// Pillow's fixed point: weights of 8-bit pixels have 32 - 8 - 2 bits behind the point.
constexpr int weight_bits = 22;

double triangle(double x) { return std::max(0.0, 1.0 - std::abs(x)); }

// Keys's cubic convolution with a = -0.5.
double cubic(double x) {
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

Axis filter_axis(int from, int to, Interpolation interpolation) {
    const bool is_cubic = interpolation == Interpolation::bicubic;
    const double scale = static_cast<double>(from) / to;
    const double stretch = std::max(scale, 1.0);  // a smaller picture averages over more pixels
    const double reach = (is_cubic ? 2.0 : 1.0) * stretch;
    Axis axis;
    std::vector<double> shares;
    for (int place = 0; place < to; ++place) {
        const double centre = (place + 0.5) * scale;
        const int first = std::max(static_cast<int>(centre - reach + 0.5), 0);
        const int end = std::min(static_cast<int>(centre + reach + 0.5), from);
        shares.clear();
        double sum = 0.0;
        for (int i = 0; i < end - first; ++i) {
            const double x = (i + first - centre + 0.5) * (1.0 / stretch);
            shares.push_back(is_cubic ? cubic(x) : triangle(x));
            sum += shares.back();
        }
        std::vector<int> weights;
        for (double share : shares) {
            if (sum != 0.0) share *= 1.0 / sum;
            const double scaled = share * (1 << weight_bits);
            weights.push_back(static_cast<int>(scaled < 0 ? scaled - 0.5 : scaled + 0.5));
        }
        axis.first.push_back(first);
        axis.weights.push_back(std::move(weights));
    }
    return axis;
}

std::uint8_t to_byte(int sum) {
    return static_cast<std::uint8_t>(std::clamp(sum >> weight_bits, 0, 255));
}

Picture filter_rows(const Picture& picture, int width, Interpolation interpolation) {
    const Axis axis = filter_axis(picture.size.width, width, interpolation);
    Picture result({picture.size.height, width});
    for (int y = 0; y < result.size.height; ++y) {
        for (int x = 0; x < width; ++x) {
            const auto place = static_cast<std::size_t>(x);
            const std::uint8_t* from = picture.at(y, axis.first[place]);
            int sums[3] = {1 << (weight_bits - 1), 1 << (weight_bits - 1), 1 << (weight_bits - 1)};
            for (const int weight : axis.weights[place]) {
                for (int& sum : sums) sum += weight * *from++;
            }
            std::transform(sums, sums + 3, result.at(y, x), to_byte);
        }
    }
    return result;
}

Picture filter_columns(const Picture& picture, int height, Interpolation interpolation) {
    const Axis axis = filter_axis(picture.size.height, height, interpolation);
    Picture result({height, picture.size.width});
    for (int y = 0; y < height; ++y) {
        const auto place = static_cast<std::size_t>(y);
        for (int x = 0; x < result.size.width; ++x) {
            int sums[3] = {1 << (weight_bits - 1), 1 << (weight_bits - 1), 1 << (weight_bits - 1)};
            int row = axis.first[place];
            for (const int weight : axis.weights[place]) {
                const std::uint8_t* from = picture.at(row++, x);
                for (int& sum : sums) sum += weight * *from++;
            }
            std::transform(sums, sums + 3, result.at(y, x), to_byte);
        }
    }
    return result;
}

// The old place of each new one, found by adding steps up.
std::vector<int> nearest_axis(int from, int to) {
    const double step = static_cast<double>(from) / to;
    std::vector<int> places;
    double place = step * 0.5;
    for (int i = 0; i < to; ++i, place += step)
        places.push_back(std::min(static_cast<int>(place), from - 1));
    return places;
}

Picture take_nearest(const Picture& picture, Size size) {
    const std::vector<int> rows = nearest_axis(picture.size.height, size.height);
    const std::vector<int> columns = nearest_axis(picture.size.width, size.width);
    Picture result(size);
    for (int y = 0; y < size.height; ++y) {
        for (int x = 0; x < size.width; ++x) {
            const int row = rows[static_cast<std::size_t>(y)],
                      column = columns[static_cast<std::size_t>(x)];
            std::copy_n(picture.at(row, column), 3, result.at(y, x));
        }
    }
    return result;
}

// OpenCV's two taps of each new place, and their weights of 11 bits.
struct Taps {
    std::vector<int> low, high, low_weight, high_weight;
};

Taps linear_taps(int from, int to) {
    Taps taps;
    for (int i = 0; i < to; ++i) {
        const auto place = static_cast<float>((i + 0.5) * (static_cast<double>(from) / to) - 0.5);
        const int low = static_cast<int>(std::floor(place));
        const bool outside = low < 0 || low >= from - 1;
        const float share = outside ? 0.0F : place - static_cast<float>(low);
        taps.low.push_back(std::clamp(low, 0, from - 1));
        taps.high.push_back(std::min(taps.low.back() + 1, from - 1));
        taps.low_weight.push_back(static_cast<int>(std::nearbyint((1.0F - share) * 2048.0F)));
        taps.high_weight.push_back(static_cast<int>(std::nearbyint(share * 2048.0F)));
    }
    return taps;
}

}  // namespace

Picture resize(const Picture& picture, Size size, Interpolation interpolation) {
    if (picture.size == size) return picture;
    if (interpolation == Interpolation::nearest) return take_nearest(picture, size);
    // An axis that stays as it is would be filtered by the identity.
    const Picture rows = picture.size.width == size.width
                             ? picture
                             : filter_rows(picture, size.width, interpolation);
    return rows.size.height == size.height ? rows
                                           : filter_columns(rows, size.height, interpolation);
}

Picture resize_bilinear(const Picture& picture, Size size) {
    if (picture.size == size) return picture;
    const Taps rows = linear_taps(picture.size.height, size.height);
    const Taps columns = linear_taps(picture.size.width, size.width);
    Picture result(size);
    const auto line = [&](int row, std::size_t x, int channel) {
        const int low = picture.at(row, columns.low[x])[channel] * columns.low_weight[x];
        return (low + picture.at(row, columns.high[x])[channel] * columns.high_weight[x]) >> 4;
    };
    for (int i = 0; i < size.height; ++i) {
        const auto y = static_cast<std::size_t>(i);
        for (int j = 0; j < size.width; ++j) {
            const auto x = static_cast<std::size_t>(j);
            for (int channel = 0; channel < 3; ++channel) {
                const int top = (line(rows.low[y], x, channel) * rows.low_weight[y]) >> 16;
                const int bottom = (line(rows.high[y], x, channel) * rows.high_weight[y]) >> 16;
                result.at(i, j)[channel] = static_cast<std::uint8_t>((top + bottom + 2) >> 2);
            }
        }
    }
    return result;
}

}  // namespace svit
