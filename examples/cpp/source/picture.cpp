#include "picture.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>  // before jpeglib.h, which needs FILE
#include <csetjmp>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include <jpeglib.h>
#include <png.h>

namespace svit {
namespace {

using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

[[noreturn]] void refuse(const std::filesystem::path& file, const std::string& why) {
    throw std::runtime_error("picture " + file.string() + " cannot be read (" + why + ")");
}

// --- EXIF: which way up -------------------------------------------------------------------------

constexpr int orientation_tag = 0x0112;

// 1 to 8, as in the first directory of a TIFF header; 1 where nothing is told.
int read_orientation(const std::uint8_t* tiff, std::size_t size) {
    if (size < 8) return 1;
    const bool little = tiff[0] == 'I';
    const auto number = [&](std::size_t at, std::size_t bytes) {
        std::size_t value = 0;
        for (std::size_t i = 0; i < bytes; ++i)
            value = value << 8 | tiff[at + (little ? bytes - 1 - i : i)];
        return value;
    };
    const std::size_t directory = number(4, 4);
    if (directory + 2 > size) return 1;
    for (std::size_t entry = 0; entry < number(directory, 2); ++entry) {
        const std::size_t at = directory + 2 + 12 * entry;
        if (at + 12 > size) return 1;
        if (number(at, 2) == orientation_tag) {
            const std::size_t value = number(at + 8, 2);
            return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
        }
    }
    return 1;
}

Picture turn_upright(const Picture& picture, int orientation) {
    if (orientation == 1) return picture;
    const auto [height, width] = picture.size;
    const bool lies = orientation >= 5;
    // Of 2, 3, 6 and 7 the columns, of 3, 4, 7 and 8 the rows of the file run backwards.
    const bool back_x =
        orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const bool back_y =
        orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    Picture result(lies ? Size{width, height} : picture.size);
    for (int y = 0; y < result.size.height; ++y) {
        for (int x = 0; x < result.size.width; ++x) {
            const int row = lies ? x : y, column = lies ? y : x;
            const std::uint8_t* from =
                picture.at(back_y ? height - 1 - row : row, back_x ? width - 1 - column : column);
            std::copy_n(from, 3, result.at(y, x));
        }
    }
    return result;
}

// --- JPEG ---------------------------------------------------------------------------------------

struct JpegErrors {
    jpeg_error_mgr manager;
    std::jmp_buf back;
    char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void leave_jpeg(j_common_ptr info) {
    auto* errors = reinterpret_cast<JpegErrors*>(info->err);
    info->err->format_message(info, errors->message);
    std::longjmp(errors->back, 1);
}

void ignore_warning(j_common_ptr, int) {}

// Nothing with a destructor lives across the jump but what the caller owns.
bool decode_jpeg(std::FILE* stream, jpeg_decompress_struct& info, JpegErrors& errors,
                 Picture& picture, int& orientation) {
    if (setjmp(errors.back) != 0) return false;
    jpeg_stdio_src(&info, stream);
    jpeg_save_markers(&info, JPEG_APP0 + 1, 0xFFFF);
    jpeg_read_header(&info, TRUE);
    info.out_color_space = JCS_RGB;
    jpeg_start_decompress(&info);
    picture = Picture({static_cast<int>(info.output_height), static_cast<int>(info.output_width)});
    while (info.output_scanline < info.output_height) {
        JSAMPROW line = picture.at(static_cast<int>(info.output_scanline), 0);
        jpeg_read_scanlines(&info, &line, 1);
    }
    for (jpeg_saved_marker_ptr marker = info.marker_list; marker != nullptr;
         marker = marker->next) {
        if (marker->data_length > 6 && std::memcmp(marker->data, "Exif\0\0", 6) == 0) {
            orientation = read_orientation(marker->data + 6, marker->data_length - 6);
        }
    }
    jpeg_finish_decompress(&info);
    return true;
}

Picture read_jpeg(std::FILE* stream, const std::filesystem::path& file) {
    jpeg_decompress_struct info{};
    JpegErrors errors{};
    info.err = jpeg_std_error(&errors.manager);
    errors.manager.error_exit = leave_jpeg;
    errors.manager.emit_message = ignore_warning;
    jpeg_create_decompress(&info);
    Picture picture;
    int orientation = 1;
    const bool decoded = decode_jpeg(stream, info, errors, picture, orientation);
    jpeg_destroy_decompress(&info);
    if (!decoded) refuse(file, errors.message);
    return turn_upright(picture, orientation);
}

// --- PNG ----------------------------------------------------------------------------------------

struct PngErrors {
    std::string message;
};

[[noreturn]] void leave_png(png_structp png, png_const_charp message) {
    static_cast<PngErrors*>(png_get_error_ptr(png))->message = message;
    png_longjmp(png, 1);
}

void ignore_png_warning(png_structp, png_const_charp) {}

bool decode_png(std::FILE* stream, png_structp png, png_infop info, Picture& picture,
                std::vector<png_bytep>& lines) {
    if (setjmp(png_jmpbuf(png)) != 0) return false;
    png_init_io(png, stream);
    png_read_info(png, info);
    png_set_expand(png);  // palettes, fewer than 8 bits, transparent colours
    png_set_strip_16(png);
    png_set_strip_alpha(png);
    png_set_gray_to_rgb(png);
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
    picture = Picture({static_cast<int>(png_get_image_height(png, info)),
                       static_cast<int>(png_get_image_width(png, info))});
    for (int y = 0; y < picture.size.height; ++y) lines.push_back(picture.at(y, 0));
    png_read_image(png, lines.data());
    png_read_end(png, info);
    return true;
}

Picture read_png(std::FILE* stream, const std::filesystem::path& file) {
    PngErrors errors;
    png_structp png =
        png_create_read_struct(PNG_LIBPNG_VER_STRING, &errors, leave_png, ignore_png_warning);
    png_infop info = png == nullptr ? nullptr : png_create_info_struct(png);
    if (info == nullptr) refuse(file, "libpng cannot start");
    Picture picture;
    std::vector<png_bytep> lines;
    const bool decoded = decode_png(stream, png, info, picture, lines);
    int orientation = 1;
#ifdef PNG_eXIf_SUPPORTED
    png_bytep exif = nullptr;
    png_uint_32 size = 0;
    if (decoded && png_get_eXIf_1(png, info, &size, &exif) != 0)
        orientation = read_orientation(exif, size);
#endif
    png_destroy_read_struct(&png, &info, nullptr);
    if (!decoded) refuse(file, errors.message);
    return turn_upright(picture, orientation);
}

}  // namespace

Picture read_picture(const std::filesystem::path& file) {
    const File stream(std::fopen(file.string().c_str(), "rb"), &std::fclose);
    if (!stream) refuse(file, std::strerror(errno));
    unsigned char magic[8] = {};
    const std::size_t read = std::fread(magic, 1, sizeof magic, stream.get());
    std::rewind(stream.get());
    if (read == sizeof magic && png_sig_cmp(magic, 0, sizeof magic) == 0)
        return read_png(stream.get(), file);
    if (read >= 2 && magic[0] == 0xFF && magic[1] == 0xD8) return read_jpeg(stream.get(), file);
    refuse(file, "neither a JPEG nor a PNG file");
}

}  // namespace svit
