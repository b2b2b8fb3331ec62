// The CUDA kernels' time on this GPU, beside the read bandwidth measured in the same run.
//
//   kernels_bench [NAME]   the rows whose name holds NAME; a table in Markdown
//
// Every call of a round (but prefill's, which the tensor cores bound) reads another copy
// of its weight or cache, more than 200 MB in all, so that nothing is found in the L2
// cache but x. A round is one CUDA graph; a row's time is the median round's, divided by
// its calls. Weights are random codes.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/base/splitmix64.h"
#include "kernels/cuda/blas.h"
#include "kernels/cuda/memory.h"
#include "kernels/ops/kv_attention/cuda_kv_attention.h"
#include "kernels/ops/linear/cuda_linear.h"
#include "kernels/ops/linear/cuda_prefill.h"
#include "kernels/ops/quantize_rows/cuda_quantize_rows.h"
#include "timing.h"

namespace nibble::cuda {
namespace {

constexpr int64_t kRotated = 256 << 20;

DeviceBuffer random_bytes(int64_t bytes, uint8_t mask = 0xff) {
  SplitMix64 random(1);
  std::vector<uint8_t> data(static_cast<size_t>(bytes));
  for (size_t i = 0; i + 8 <= data.size(); i += 8) {
    const uint64_t word = random.next();
    std::memcpy(data.data() + i, &word, 8);
  }
  for (uint8_t& byte : data) byte &= mask;
  return require(DeviceBuffer::copy_of(data.data(), bytes));
}

struct LinearRow {
  const char* name;
  LinearForm form;
  LinearScale scale;
  int group;  // 0: one a row
};

void bench_linear(const LinearRow& row, int rows, int cols, int tokens,
                  const DeviceInfo& device, double read) {
  LinearCall call;
  call.form = row.form;
  call.scale = row.scale;
  call.rows = rows;
  call.cols = cols;
  call.tiles = (rows + kTileRows - 1) / kTileRows;
  call.units = (cols + unit_columns(row.form) - 1) / unit_columns(row.form);
  call.group = row.group == 0 ? cols : row.group;
  call.groups = (cols + call.group - 1) / call.group;
  call.tokens = tokens;
  call.input = Float16::bf16;
  call.output = Output::bf16;
  call.x_stride = cols;
  call.y_stride = rows;
  for (size_t i = 0; i < 16; ++i) call.table[i] = static_cast<float>(i) / 8 - 1;
  const int64_t code_bytes = int64_t{call.tiles} * call.units * 1024;
  const int64_t scale_size =
      int64_t{call.tiles} * call.groups * kTileRows * scale_bytes(row.scale);
  const int copies = static_cast<int>(
      std::clamp<int64_t>((kRotated + code_bytes - 1) / code_bytes, 2, 64));
  // e4m3: no code of NaN (0x7f); scales: 0x21 repeated is small in f32 and in f16.
  DeviceBuffer codes =
      random_bytes(code_bytes, row.form == LinearForm::e4m3 ? 0xf7 : 0xff);
  std::vector<DeviceBuffer> all_codes, all_scales;
  for (int i = 0; i < copies; ++i) {
    all_codes.push_back(require(DeviceBuffer::allocate(code_bytes)));
    if (cudaMemcpy(all_codes.back().data(), codes.data(), static_cast<size_t>(code_bytes),
                   cudaMemcpyDeviceToDevice) != cudaSuccess) {
      require(error(StatusCode::internal, "cudaMemcpy failed"));
    }
    all_scales.push_back(require(DeviceBuffer::allocate(scale_size)));
    require(all_scales.back().fill(0x21));
  }
  const LinearPlan plan =
      plan_linear(row.form, rows, cols, tokens, device.multiprocessors);
  DeviceBuffer x = random_bytes(int64_t{tokens} * cols * 2, 0x3f),
               x_scales = random_bytes(tokens * 4, 0x3f),
               y = require(DeviceBuffer::allocate(int64_t{tokens} * rows * 2)),
               partial = require(DeviceBuffer::allocate(plan.partial_bytes + 16)),
               counters = require(DeviceBuffer::allocate(plan.row_blocks * 4));
  require(counters.fill(0));
  call.x = x.data();
  if (row.form == LinearForm::int8_s8)
    call.x_scales = static_cast<const float*>(x_scales.data());
  call.y = y.data();
  call.partial = partial.data();
  call.counters = static_cast<uint32_t*>(counters.data());
  const double time = microseconds(copies, [&](int i, void* stream) {
    LinearCall of_copy = call;
    of_copy.codes = all_codes[static_cast<size_t>(i)].data();
    of_copy.scales = all_scales[static_cast<size_t>(i)].data();
    require(run_linear(of_copy, plan, stream));
  });
  const double bytes = static_cast<double>(code_bytes + scale_size);
  std::printf("| %s | %d x %d | %d | %.2f | %.0f | %.2f | %d |\n", row.name, rows, cols,
              tokens, time, bytes / time / 1000, bytes / time / read, plan.splits);
  std::fflush(stdout);
}

void bench_attention(KvForm form, int length, int batch, const DeviceInfo& device,
                     double read) {
  const AttentionShape shape = {
      .heads = 32, .kv_heads = 8, .head_dim = 128, .scale = 0.09f};
  const int64_t width = shape.kv_heads * shape.head_dim * (form == KvForm::f16 ? 2 : 1);
  const int64_t bytes = int64_t{batch} * length * width;
  const int64_t scale_size = int64_t{batch} * length * shape.kv_heads * 2;
  const int copies = static_cast<int>(
      std::clamp<int64_t>((kRotated + 2 * bytes - 1) / (2 * bytes), 2, 64));
  std::vector<DeviceBuffer> k, v, k_scales, v_scales;
  for (int i = 0; i < copies; ++i) {
    for (auto* buffers : {&k, &v}) {
      buffers->push_back(require(DeviceBuffer::allocate(bytes)));
      require(buffers->back().fill(0x31));
    }
    for (auto* buffers : {&k_scales, &v_scales}) {
      buffers->push_back(require(DeviceBuffer::allocate(scale_size)));
      require(buffers->back().fill(0x21));
    }
  }
  const KvAttentionPlan plan =
      plan_kv_attention(shape, batch, length, device.multiprocessors);
  const std::vector<int32_t> lengths(static_cast<size_t>(batch), length);
  const int64_t values = int64_t{batch} * shape.heads * shape.head_dim;
  DeviceBuffer q = random_bytes(values * 2, 0x3f),
               y = require(DeviceBuffer::allocate(values * 2)),
               partial = require(DeviceBuffer::allocate(plan.partial_bytes + 16)),
               counters = require(DeviceBuffer::allocate(plan.counters * 4)),
               sizes = require(DeviceBuffer::copy_of(lengths.data(), batch * 4));
  require(counters.fill(0));
  KvAttentionCall call;
  call.shape = shape;
  call.input = Float16::bf16;
  call.output = Output::bf16;
  call.form = form;
  call.batch = batch;
  call.capacity = length;
  call.q = q.data();
  call.y = y.data();
  call.lengths = static_cast<const int32_t*>(sizes.data());
  call.partial = static_cast<float*>(partial.data());
  call.counters = static_cast<uint32_t*>(counters.data());
  const double time = microseconds(copies, [&](int i, void* stream) {
    const size_t at = static_cast<size_t>(i);
    KvAttentionCall of_copy = call;
    of_copy.k = k[at].data();
    of_copy.v = v[at].data();
    of_copy.k_scales = static_cast<const uint16_t*>(k_scales[at].data());
    of_copy.v_scales = static_cast<const uint16_t*>(v_scales[at].data());
    require(run_kv_attention(of_copy, plan, stream));
  });
  const double all =
      2.0 * static_cast<double>(bytes + (form == KvForm::f16 ? 0 : scale_size));
  std::printf("| attention %s | %d | %d | %.2f | %.0f | %.2f | %d |\n",
              form == KvForm::f16    ? "f16"
              : form == KvForm::int8 ? "int8"
                                     : "e4m3",
              length, batch, time, all / time / 1000, all / time / read, plan.splits);
  std::fflush(stdout);
}

// The tensor cores' own speed: registers only, four sums a warp on their way.
enum class Mma { bf16, s8, s4 };
template <Mma kMma>
__global__ void multiply_only(int rounds, int* to) {
  uint32_t a[4] = {threadIdx.x, 1, 2, 3}, b[2] = {threadIdx.x, 5};
  float f[4][4] = {};
  int32_t d[4][4] = {};
  for (int i = 0; i < rounds; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if constexpr (kMma == Mma::bf16) mma_bf16(f[j], a, b[0], b[1]);
      if constexpr (kMma == Mma::s8) mma_s8(d[j], a, b[0], b[1]);
      if constexpr (kMma == Mma::s4) {
        asm("mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+r"(d[j][0]), "+r"(d[j][1]), "+r"(d[j][2]), "+r"(d[j][3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
      }
    }
  }
  float sum = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) sum += f[j][0] + static_cast<float>(d[j][0]);
  if (sum == 1.5f) *to = 1;  // keeps the products
}

template <Mma kMma>
void bench_mma(const char* name, const char* note, const DeviceInfo& device) {
  constexpr int kRoundsOfMma = 4096, kWarps = 8;
  DeviceBuffer to = require(DeviceBuffer::allocate(16));
  const int blocks = 4 * device.multiprocessors;
  const double time = microseconds(2, [&](int, void* stream) {
    multiply_only<kMma><<<static_cast<unsigned>(blocks), 32 * kWarps, 0,
                          static_cast<cudaStream_t>(stream)>>>(
        kRoundsOfMma, static_cast<int*>(to.data()));
  });
  const double depth = kMma == Mma::bf16 ? 16 : kMma == Mma::s8 ? 32 : 64;
  const double operations = 2.0 * 16 * 8 * depth * 4 * kRoundsOfMma * kWarps * blocks;
  std::printf("| %s | %.0f | %s |\n", name, operations / time / 1e6, note);
  std::fflush(stdout);
}

// Many tokens: our kernels around cuBLASLt's product, beside that product alone.
void bench_prefill(const LinearRow& row, int size, int tokens, Blas& blas) {
  const bool is_s8 = row.form == LinearForm::int8_s8,
             is_fp8 = row.form == LinearForm::e4m3;
  const bool has_codes = is_s8 || is_fp8;
  LinearCall call;
  call.form = row.form;
  call.scale = row.scale;
  call.input = Float16::bf16;
  call.rows = call.cols = size;
  call.tiles = size / kTileRows;
  call.units = size / unit_columns(row.form);
  call.group = row.group == 0 ? size : row.group;
  call.groups = size / call.group;
  for (size_t i = 0; i < 16; ++i) call.table[i] = static_cast<float>(i) / 8 - 1;
  const int64_t cells = int64_t{size} * size, outputs = int64_t{tokens} * size;
  DeviceBuffer codes = random_bytes(int64_t{call.tiles} * call.units * 1024,
                                    is_fp8 ? 0xf7 : 0xff),
               scales =
                   require(DeviceBuffer::allocate(int64_t{call.tiles} * call.groups *
                                                  kTileRows * scale_bytes(row.scale))),
               w = require(DeviceBuffer::allocate(cells * (has_codes ? 1 : 2))),
               x = random_bytes(outputs * 2, 0x3f),
               x_codes = require(DeviceBuffer::allocate(outputs)),
               x_scales = require(DeviceBuffer::allocate(int64_t{tokens} * 4)),
               sums = require(DeviceBuffer::allocate(outputs * 4)),
               y = require(DeviceBuffer::allocate(outputs * 2));
  require(scales.fill(0x21));
  call.codes = codes.data();
  call.scales = scales.data();
  const ProductCall product = {.type = is_s8    ? ProductType::s8
                                       : is_fp8 ? ProductType::e4m3
                                                : ProductType::bf16,
                               .sums = has_codes,
                               .rows = size,
                               .cols = size,
                               .tokens = tokens,
                               .w = w.data(),
                               .w_stride = size,
                               .x = has_codes ? x_codes.data() : x.data(),
                               .x_stride = size,
                               .d = has_codes ? sums.data() : y.data(),
                               .d_stride = size};
  const auto around = [&](void* stream) {
    if (!has_codes) {
      DequantizeCall floats = dequantize_call(call);
      floats.w = w.data();
      floats.stride = size;
      require(run_dequantize(floats, stream));
      require(blas.multiply(product, stream));
      return;
    }
    require(run_unpack_codes({.form = row.form,
                              .rows = size,
                              .cols = size,
                              .tiles = call.tiles,
                              .units = call.units,
                              .codes = call.codes,
                              .w = w.data(),
                              .stride = size},
                             stream));
    require(run_quantize_rows({.input = Float16::bf16,
                               .x = x.data(),
                               .x_stride = size,
                               .fp8 = is_fp8,
                               .codes = x_codes.data(),
                               .stride = size,
                               .scales = static_cast<float*>(x_scales.data()),
                               .tokens = tokens,
                               .cols = size},
                              stream));
    require(blas.multiply(product, stream));
    require(run_epilogue({.int_sums = is_s8,
                          .sums = sums.data(),
                          .sums_stride = size,
                          .w_scales = static_cast<const float*>(scales.data()),
                          .w_unit = is_fp8 ? 0x1p-8f : 1.0f,
                          .x_scales = static_cast<const float*>(x_scales.data()),
                          .output = Output::bf16,
                          .y = y.data(),
                          .y_stride = size,
                          .rows = size,
                          .tokens = tokens},
                         stream));
  };
  const double whole = microseconds(4, [&](int, void* stream) { around(stream); });
  const double alone = microseconds(
      4, [&](int, void* stream) { require(blas.multiply(product, stream)); });
  std::printf("| %s | %d x %d | %d | %.1f | %.1f | %.2f | %.0f |\n", row.name, size, size,
              tokens, whole, alone, alone / whole,
              2.0 * static_cast<double>(outputs) * size / whole / 1e6);
  std::fflush(stdout);
}

int bench(const char* only) {
  const Result<DeviceInfo> device = device_info();
  if (!device.ok()) {
    std::printf("skipped: %s\n", device.status().message().c_str());
    return 77;
  }
  const double read = read_bandwidth(device->multiprocessors);
  std::printf("%s, %d multiprocessors, read %.0f GB/s\n\n", device->name.c_str(),
              device->multiprocessors, read / 1000);
  std::printf("| kernel | shape | tokens or batch | us | GB/s | of read | splits |\n");
  std::printf("|---|---|---|---|---|---|---|\n");
  const LinearRow int4 = {"int4 g128", LinearForm::int4, LinearScale::f16, 128};
  const auto wanted = [&](const char* name) {
    return std::strstr(name, only) != nullptr;
  };
  if (wanted(int4.name)) {
    const std::vector<std::pair<int, int>> shapes = {
        {4096, 4096}, {8192, 8192}, {7168, 20480}, {14336, 4096}, {8192, 81920}};
    for (const auto& [rows, cols] : shapes) {
      bench_linear(int4, rows, cols, 1, *device, read);
    }
    for (const int tokens : {2, 4, 8, 16, 32, 64})
      bench_linear(int4, 8192, 8192, tokens, *device, read);
  }
  for (const LinearRow& row :
       {LinearRow{"int4 g32", LinearForm::int4, LinearScale::f16, 32},
        LinearRow{"int4 row", LinearForm::int4, LinearScale::f16, 0},
        LinearRow{"nf4 g64", LinearForm::table4, LinearScale::f32, 64},
        LinearRow{"mxfp4", LinearForm::table4, LinearScale::e8m0, 32},
        LinearRow{"int8 row", LinearForm::int8, LinearScale::f32, 0},
        LinearRow{"fp8 g128", LinearForm::e4m3, LinearScale::f32, 128},
        LinearRow{"w8a8", LinearForm::int8_s8, LinearScale::f32, 0}}) {
    if (!wanted(row.name)) continue;
    for (const int size : {4096, 8192}) bench_linear(row, size, size, 1, *device, read);
    bench_linear(row, 8192, 8192, 16, *device, read);
  }
  if (wanted("attention")) {
    for (const KvForm form : {KvForm::f16, KvForm::int8, KvForm::e4m3}) {
      bench_attention(form, 32768, 1, *device, read);
      bench_attention(form, 4096, 8, *device, read);
    }
  }
  if (!Blas::is_there()) std::printf("\ncuBLASLt is not in this build: no prefill\n");
  if (wanted("prefill") && Blas::is_there()) {
    std::printf(
        "\n| prefill | shape | tokens | us | cuBLASLt alone, us | of it | TOP/s |\n"
        "|---|---|---|---|---|---|---|\n");
    Blas blas = require(Blas::create());
    for (const int tokens : {512, 2048, 8192}) {
      bench_prefill(int4, 8192, tokens, blas);
      bench_prefill({"w8a8", LinearForm::int8_s8, LinearScale::f32, 0}, 8192, tokens,
                    blas);
      if (10 * device->major + device->minor >= 89) {
        bench_prefill({"fp8", LinearForm::e4m3, LinearScale::f32, 0}, 8192, tokens, blas);
      }
    }
  }
  if (wanted("mma")) {
    std::printf("\n| instruction (mma.sync) | TOP/s | |\n|---|---|---|\n");
    bench_mma<Mma::bf16>("bf16 m16n8k16", "", *device);
    bench_mma<Mma::s8>("s8 m16n8k32", "", *device);
    bench_mma<Mma::s4>("s4 m16n8k64",
                       has_int4_products(*device) ? "native" : "not native here",
                       *device);
  }
  return 0;
}

}  // namespace
}  // namespace nibble::cuda

int main(int argc, char** argv) { return nibble::cuda::bench(argc > 1 ? argv[1] : ""); }
