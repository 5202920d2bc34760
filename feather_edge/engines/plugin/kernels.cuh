// The kernels of feather::TopKUniformGather.
//
//   rows = ascending(top-k(scores + priority, num_kept)), then rows of three tensors.
//
//   scores, priority  [B, S] float     kept  [B, K] int64, ascending
//   hidden, cos, sin  [B, S, *]        kept_hidden, kept_cos, kept_sin  [B, K, *]
//
// Ties go to the lowest row and NaN counts as -infinity, so the result is a function of the input
// alone; the numpy reference is feather_edge.pruning.selection.top_k_uniform_gather. A gather
// moves bytes, so the element type of the three tensors matters only through its size.
//
// The tests compile this very file for the CPU. Therefore: no warp intrinsics, no dynamic shared
// memory, no launches, and every thread of a block reaches every barrier.
#pragma once

#include <cstdint>
#include <cstring>

namespace feather {

constexpr int kSelectThreads = 256;
constexpr int kGatherThreads = 128;
constexpr int kNumTensors = 3;  // hidden, cos, sin
constexpr int kRadixBits = 8;
constexpr int kRadix = 1 << kRadixBits;
constexpr int kKeyBits = 32;

// One tensor whose rows follow the selection.
struct RowTensor {
    void const* source;      // [B, S, row_bytes]
    void* target;            // [B, K, row_bytes]
    std::int64_t row_bytes;
    int word_bytes;          // of one load: 16, 8, 4, 2 or 1
};

struct RowTensors {
    RowTensor each[kNumTensors];
};

// Describes a tensor, with the widest load that both pointers and the row size allow.
inline RowTensor row_tensor(void const* source, void* target, std::int64_t row_bytes) {
    auto const bits = reinterpret_cast<std::uintptr_t>(source) |
                      reinterpret_cast<std::uintptr_t>(target) |
                      static_cast<std::uintptr_t>(row_bytes);
    int word_bytes = 16;
    while (bits % word_bytes != 0) word_bytes /= 2;
    return {source, target, row_bytes, word_bytes};
}

// Maps a score to a key whose unsigned order is the order of the ranking.
__device__ inline std::uint32_t ranking_key(float score, float priority) {
    float value = score + priority;
    if (value != value) value = -__builtin_inff();
    if (value == 0.0f) value = 0.0f;  // -0 and +0 are a tie
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Returns the sum of `mine` over the threads before this one. All threads of the block call it;
// `scratch` holds one value per thread and can be used again at once.
__device__ inline std::uint32_t sum_of_threads_before(std::uint32_t mine, std::uint32_t* scratch) {
    int const thread = threadIdx.x;
    std::uint32_t sum = mine;
    scratch[thread] = sum;
    __syncthreads();
    for (int distance = 1; distance < static_cast<int>(blockDim.x); distance *= 2) {
        std::uint32_t const other = thread >= distance ? scratch[thread - distance] : 0;
        __syncthreads();
        sum += other;
        scratch[thread] = sum;
        __syncthreads();
    }
    return sum - mine;
}

// Finds the key of the K-th best row, most significant digit first, and how many rows of exactly
// that key are kept. Each pass counts the rows that share the digits found so far by their next
// digit.
__device__ inline void find_threshold(float const* scores, float const* priority, int num_rows,
                                      int num_kept, std::uint32_t* histogram,
                                      std::uint32_t* threshold, std::uint32_t* num_ties) {
    int const thread = threadIdx.x;
    int const num_threads = blockDim.x;
    if (thread == 0) {
        *threshold = 0;
        *num_ties = num_kept;
    }
    for (int shift = kKeyBits - kRadixBits; shift >= 0; shift -= kRadixBits) {
        for (int digit = thread; digit < kRadix; digit += num_threads) histogram[digit] = 0;
        __syncthreads();
        std::uint32_t const found = *threshold >> shift >> kRadixBits;
        for (int row = thread; row < num_rows; row += num_threads) {
            std::uint32_t const digits = ranking_key(scores[row], priority[row]) >> shift;
            if (digits >> kRadixBits == found) atomicAdd(&histogram[digits % kRadix], 1u);
        }
        __syncthreads();
        if (thread == 0) {
            std::uint32_t wanted = *num_ties;
            int digit = kRadix - 1;
            for (; histogram[digit] < wanted; --digit) wanted -= histogram[digit];
            *threshold |= static_cast<std::uint32_t>(digit) << shift;
            *num_ties = wanted;
        }
        __syncthreads();
    }
}

// One block per batch row. Writes the kept rows [B, K] in ascending order; 1 <= K <= S.
__global__ void __launch_bounds__(kSelectThreads)
select_rows(float const* scores, float const* priority, std::int64_t* kept,
                            int num_rows, int num_kept) {
    __shared__ std::uint32_t histogram[kRadix];
    __shared__ std::uint32_t scratch[kSelectThreads];
    __shared__ std::uint32_t threshold;
    __shared__ std::uint32_t num_ties;
    scores += static_cast<std::int64_t>(blockIdx.x) * num_rows;
    priority += static_cast<std::int64_t>(blockIdx.x) * num_rows;
    kept += static_cast<std::int64_t>(blockIdx.x) * num_kept;
    find_threshold(scores, priority, num_rows, num_kept, histogram, &threshold, &num_ties);

    // Each thread owns neighbouring rows, so its rank among the rows before it is one prefix sum.
    int const share = (num_rows + blockDim.x - 1) / blockDim.x;
    int const first = min(static_cast<int>(threadIdx.x) * share, num_rows);
    int const last = min(first + share, num_rows);
    std::uint32_t num_above = 0;
    std::uint32_t num_equal = 0;
    for (int row = first; row < last; ++row) {
        std::uint32_t const key = ranking_key(scores[row], priority[row]);
        num_above += key > threshold;
        num_equal += key == threshold;
    }
    std::uint32_t const above_before = sum_of_threads_before(num_above, scratch);
    std::uint32_t ties_before = sum_of_threads_before(num_equal, scratch);
    std::uint32_t place = above_before + min(ties_before, num_ties);
    for (int row = first; row < last; ++row) {
        std::uint32_t const key = ranking_key(scores[row], priority[row]);
        bool const tie_kept = key == threshold && ties_before++ < num_ties;
        if (key > threshold || tie_kept) kept[place++] = row;
    }
}

template <typename Word>
__device__ inline void copy_row(void const* source, void* target, std::int64_t row_bytes) {
    auto const* from = static_cast<Word const*>(source);
    auto* to = static_cast<Word*>(target);
    std::int64_t const num_words = row_bytes / static_cast<std::int64_t>(sizeof(Word));
    for (std::int64_t word = threadIdx.x; word < num_words; word += blockDim.x) {
        to[word] = from[word];
    }
}

__device__ inline void copy_row(RowTensor const& tensor, std::int64_t from, std::int64_t to) {
    void const* source = static_cast<char const*>(tensor.source) + from * tensor.row_bytes;
    void* target = static_cast<char*>(tensor.target) + to * tensor.row_bytes;
    switch (tensor.word_bytes) {
        case 16: return copy_row<uint4>(source, target, tensor.row_bytes);
        case 8: return copy_row<std::uint64_t>(source, target, tensor.row_bytes);
        case 4: return copy_row<std::uint32_t>(source, target, tensor.row_bytes);
        case 2: return copy_row<std::uint16_t>(source, target, tensor.row_bytes);
        default: return copy_row<std::uint8_t>(source, target, tensor.row_bytes);
    }
}

// Block (k, b) copies row kept[b, k] of every tensor.
__global__ void __launch_bounds__(kGatherThreads)
gather_rows(std::int64_t const* kept, RowTensors tensors, int num_rows) {
    std::int64_t const to = static_cast<std::int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
    std::int64_t const from = static_cast<std::int64_t>(blockIdx.y) * num_rows + kept[to];
    for (int i = 0; i < kNumTensors; ++i) copy_row(tensors.each[i], from, to);
}

}  // namespace feather
