// The plugin's kernels as functions that ctypes can call, run by cuda_on_cpu.h.

#include "cuda_on_cpu.h"
// After the shim, which defines CUDA's words.
#include "kernels.cuh"

extern "C" {

int max_select_threads() { return feather::kSelectThreads; }

void select_kept(float const* scores, float const* priority, std::int64_t* kept, int batch,
                 int num_rows, int num_kept, int threads, bool downwards) {
    cpu::launch({static_cast<unsigned>(batch)}, threads, downwards, [=] {
        feather::select_rows(scores, priority, kept, num_rows, num_kept);
    });
}

// Returns the bytes of the narrowest load that was chosen.
int gather_kept(std::int64_t const* kept, void const* const* sources, void* const* targets,
                std::int64_t const* row_bytes, int batch, int num_rows, int num_kept, int threads,
                bool downwards) {
    feather::RowTensors tensors;
    int narrowest = 16;
    for (int i = 0; i < feather::kNumTensors; ++i) {
        tensors.each[i] = feather::row_tensor(sources[i], targets[i], row_bytes[i]);
        narrowest = std::min(narrowest, tensors.each[i].word_bytes);
    }
    dim3 const blocks{static_cast<unsigned>(num_kept), static_cast<unsigned>(batch)};
    cpu::launch(blocks, threads, downwards,
                [=] { feather::gather_rows(kept, tensors, num_rows); });
    return narrowest;
}
}
