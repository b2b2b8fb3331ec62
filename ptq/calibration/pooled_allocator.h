// Memory for LibTorch's tensors that is used again at once.
//
// Calibration makes and drops tensors of a few sizes millions of times. From the system
// each would come page by page, zeroed; from a heap they would leave holes and double the
// peak. Blocks of 64 KiB to 32 MiB, in sizes of eight a power of two, wait here for the
// next tensor of their size, 64 MiB of them at most, the sizes last used; others go to
// and come from the system.
#pragma once

namespace nibble {

// From now on, for all tensors on the CPU. Once a process; before other threads run.
void use_pooled_allocator();
// What waits goes back: nothing will ask for it soon.
void empty_memory_pool();

}  // namespace nibble
