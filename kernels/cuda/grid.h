// The blocks of a launch.
#pragma once

namespace nibble::cuda {

struct Grid {
  int x = 1, y = 1, z = 1;
};

}  // namespace nibble::cuda
