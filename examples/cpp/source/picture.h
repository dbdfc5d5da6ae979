// RGB pictures, and reading them from files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "bundle.h"

namespace svit {

struct Picture {
    Size size;
    std::vector<std::uint8_t> pixels;  // [height, width, 3]

    explicit Picture(Size size = {})
        : size(size),
          pixels(std::size_t{3} * static_cast<std::size_t>(size.height) *
                 static_cast<std::size_t>(size.width)) {}

    std::uint8_t* at(int y, int x) {
        return pixels.data() +
               3 * (static_cast<std::size_t>(y) * static_cast<std::size_t>(size.width) +
                    static_cast<std::size_t>(x));
    }
    const std::uint8_t* at(int y, int x) const { return const_cast<Picture*>(this)->at(y, x); }
};

// A JPEG or PNG file, upright (EXIF), without its transparency; of 16 bits the upper 8.
Picture read_picture(const std::filesystem::path& file);

}  // namespace svit
