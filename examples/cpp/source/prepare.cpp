#include "prepare.h"

#include <algorithm>
#include <cmath>

#include "resample.h"

namespace svit {
namespace {

// Writes (x / 255 - mean) / std into [3, height, width], at the top left.
void normalise(const Picture& picture, const Preprocess& how, Size padded, float* into) {
    for (std::size_t channel = 0; channel < 3; ++channel) {
        for (int y = 0; y < picture.size.height; ++y) {
            float* line = into + (static_cast<int>(channel) * padded.height + y) * padded.width;
            for (int x = 0; x < picture.size.width; ++x) {
                const float value = static_cast<float>(picture.at(y, x)[channel]) / 255.0F;
                line[x] = (value - how.mean[channel]) / how.std[channel];
            }
        }
    }
}

Picture crop(const Picture& picture, int top, int left, Size size) {
    Picture result(size);
    for (int y = 0; y < size.height; ++y)
        std::copy_n(picture.at(top + y, left), 3 * size.width, result.at(y, 0));
    return result;
}

// Half of a difference, to the nearest whole number, ties to the even one.
int half(int difference) { return static_cast<int>(std::nearbyint(difference / 2.0)); }

Picture resize_and_crop(const Picture& picture, const Bundle& bundle) {
    const auto [height, width] = bundle.image_size;
    const auto [tall, wide] = picture.size;
    const int target_height = static_cast<int>(height / bundle.preprocess.crop_ratio);
    const int target_width = static_cast<int>(width / bundle.preprocess.crop_ratio);
    Size resized{target_height, target_width};
    const std::int64_t across = std::int64_t{tall} * target_width,
                       down = std::int64_t{wide} * target_height;
    if (across <= down) {
        resized.width = static_cast<int>(down / tall);
    } else {
        resized.height = static_cast<int>(across / wide);
    }
    const Picture scaled = resize(picture, resized, bundle.preprocess.interpolation);
    return crop(scaled, half(resized.height - height), half(resized.width - width),
                bundle.image_size);
}

void repeat(Tensor& tensor, int times) {
    const std::vector<std::byte> once = tensor.bytes;
    for (int i = 1; i < times; ++i)
        tensor.bytes.insert(tensor.bytes.end(), once.begin(), once.end());
    tensor.shape[0] = times;
}

Tensors whole(const Picture& picture, const Bundle& bundle) {
    const Padding& wanted = bundle.padding;
    const auto [height, width] = picture.size;
    double scale = std::min(wanted.long_side / static_cast<double>(std::max(height, width)),
                            wanted.short_side / static_cast<double>(std::min(height, width)));
    scale = std::min({scale, wanted.max.height / static_cast<double>(height),
                      wanted.max.width / static_cast<double>(width)});
    const auto fit = [scale](int side, int limit) {
        return std::min(std::max(static_cast<int>(side * scale + 0.5), 1), limit);
    };
    const Size resized{fit(height, wanted.max.height), fit(width, wanted.max.width)};
    const auto up = [&wanted](int side) {
        return (side + wanted.step - 1) / wanted.step * wanted.step;
    };
    const Size padded = wanted.fixed ? wanted.opt : Size{up(resized.height), up(resized.width)};
    std::vector<float> pixels(
        std::size_t{3} * static_cast<std::size_t>(padded.height * padded.width), 0.0F);
    normalise(resize_bilinear(picture, resized), bundle.preprocess, padded, pixels.data());
    const auto across = static_cast<float>(resized.width / static_cast<double>(width));
    const auto down = static_cast<float>(resized.height / static_cast<double>(height));
    const std::vector<float> inside{static_cast<float>(resized.height),
                                    static_cast<float>(resized.width)};
    return {{"images", Tensor({1, 3, padded.height, padded.width}, pixels)},
            {"image_sizes", Tensor({1, 2}, inside)},
            {"scale_factors", Tensor({1, 4}, {across, down, across, down})}};
}

}  // namespace

Tensors prepare(const Picture& picture, const Bundle& bundle) {
    Tensors inputs;
    if (bundle.task == "classify") {
        const auto [height, width] = bundle.image_size;
        std::vector<float> pixels(std::size_t{3} * static_cast<std::size_t>(height * width));
        normalise(resize_and_crop(picture, bundle), bundle.preprocess, bundle.image_size,
                  pixels.data());
        inputs.emplace("images", Tensor({1, 3, height, width}, pixels));
    } else {
        inputs = whole(picture, bundle);
    }
    for (auto& [name, tensor] : inputs) repeat(tensor, bundle.min_batch);
    return inputs;
}

}  // namespace svit
