// What a bundle's manifest.json says.
#pragma once

#include <array>
#include <filesystem>
#include <string>
#include <vector>

namespace svit {

struct Size {
    int height = 0, width = 0;

    bool operator==(const Size& other) const {
        return height == other.height && width == other.width;
    }
};

enum class Interpolation { nearest, bilinear, bicubic };

struct Preprocess {
    std::array<float, 3> mean{}, std{};
    double crop_ratio = 1.0;
    Interpolation interpolation = Interpolation::bicubic;
};

// How pictures of many sizes become inputs: scaled to fit, padded to multiples of `step`.
struct Padding {
    int short_side = 0, long_side = 0, step = 32;
    Size opt, max;
    bool fixed = false;
};

struct Bundle {
    std::filesystem::path folder;
    std::string task;  // classify, backbone or detect
    std::string precision;  // fp32, fp16, bf16, int8 or fp8
    Size image_size;
    Preprocess preprocess;
    Padding padding;  // of other tasks than classify
    int min_batch = 1;
    std::string engine;                    // empty without one
    std::vector<std::string> class_names;  // empty where nothing tells them
    std::vector<int> gate_blocks;          // the block that each gate stands in front of

    std::string title(std::int64_t label) const;
};

// Throws std::runtime_error for a folder that is no bundle, or of a newer kind.
Bundle open_bundle(const std::filesystem::path& folder);

}  // namespace svit
