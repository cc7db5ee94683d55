// Activations inside a program: images of channels of planes. No torch here.
//
//   a plane     lead | a a a . | a a a . | a a a . | tail        row = 4, width = 3, height = 3
//
// '.' are zeros: the columns that end a row are the left padding of the next as well, where a
// reader needs them (csr convolutions do not). Lead and tail hold zeros too, as many as the windows
// that read this value reach. A plane is one flat stream then: tap (i, j) of a window with stride 1
// reads it at a fixed distance.
#pragma once
#include <cstdint>

namespace sparseprune {

struct Planes {
  int64_t images = 0, channels = 0;
  int64_t depth = 1, height = 1, width = 1;
  int64_t row = 1, slice = 1;    // floats from a row (a slice) to the next; row >= width
  int64_t lead = 0;              // floats before element 0 of a plane, a multiple of 16
  int64_t plane = 0, image = 0;  // floats from a channel (an image) to the next, multiples of 16

  // Floats from element 0 to the end of the last row, and the same in whole vectors of 16.
  int64_t flat() const { return (depth - 1) * slice + (height - 1) * row + width; }
  int64_t lanes() const { return (flat() + 15) / 16 * 16; }
  // Floats from element 0 on that are all elements.
  int64_t filled() const {
    return row == width && (depth == 1 || slice == height * row) ? flat() : width;
  }
  // Position of channel c of image n, element (0, 0, 0).
  int64_t at(int64_t n, int64_t c) const { return n * image + c * plane + lead; }
};

}  // namespace sparseprune
