// Resizing, pixel for pixel as the libraries do it that models are trained with.
#pragma once

#include "picture.h"

namespace svit {

// As Pillow's Image.resize: bilinear and bicubic with antialiasing, in fixed point.
Picture resize(const Picture& picture, Size size, Interpolation interpolation);

// As OpenCV's INTER_LINEAR to one grey level: without antialiasing.
Picture resize_bilinear(const Picture& picture, Size size);

}  // namespace svit
