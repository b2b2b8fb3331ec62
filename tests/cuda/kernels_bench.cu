// The CUDA kernels' time on this GPU, beside the read bandwidth measured in the same run.
//
//   kernels_bench [NAME]   the rows whose name holds NAME; a table in Markdown
//
// Every call of a round reads another copy of its weight or cache, more than 200 MB in
// all, so that nothing is found in the L2 cache but x. A round is one CUDA graph; a row's
// time is the median round's, divided by its calls. Weights are random codes.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "kernels/base/splitmix64.h"
#include "kernels/cuda/memory.h"
#include "kernels/ops/kv_attention/cuda_kv_attention.h"
#include "kernels/ops/linear/cuda_linear.h"

namespace nibble::cuda {
namespace {

constexpr int64_t kRotated = 256 << 20;
constexpr int kRounds = 30;

void require(cudaError_t result) {
  if (result == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", cudaGetErrorName(result), cudaGetErrorString(result));
  std::exit(1);
}
template <class T>
T require(Result<T> result) {
  if (!result.ok()) {
    std::fprintf(stderr, "%s\n", result.status().message().c_str());
    std::exit(1);
  }
  return std::move(result).value();
}
void require(const Status& status) {
  if (!status.ok()) require(Result<int>(status));
}

// Microseconds a call: the median of rounds of `calls` calls.
double microseconds(int calls, const std::function<void(int, cudaStream_t)>& call) {
  cudaStream_t stream;
  require(cudaStreamCreate(&stream));
  call(0, stream);  // sets what a graph cannot hold
  require(cudaStreamSynchronize(stream));
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < calls; ++i) call(i, stream);
  require(cudaStreamEndCapture(stream, &graph));
  require(cudaGraphInstantiate(&executable, graph, 0));
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin));
  require(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < kRounds + 3; ++i) {
    float milliseconds = 0;
    require(cudaEventRecord(begin, stream));
    require(cudaGraphLaunch(executable, stream));
    require(cudaEventRecord(end, stream));
    require(cudaEventSynchronize(end));
    require(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i >= 3) times.push_back(milliseconds);
  }
  std::sort(times.begin(), times.end());
  require(cudaEventDestroy(begin));
  require(cudaEventDestroy(end));
  require(cudaGraphExecDestroy(executable));
  require(cudaGraphDestroy(graph));
  require(cudaStreamDestroy(stream));
  return times[times.size() / 2] * 1000.0 / calls;
}

__global__ void read_all(const uint4* from, int64_t count, unsigned* to) {
  unsigned sum = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + 3 * step < count; i += 4 * step) {
    const uint4 a = __ldcs(from + i), b = __ldcs(from + i + step),
                c = __ldcs(from + i + 2 * step), d = __ldcs(from + i + 3 * step);
    sum += a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^
           d.y ^ d.z ^ d.w;
  }
  for (; i < count; i += step) sum += from[i].x;
  if (sum == 1) *to = sum;  // keeps the reads
}

double read_bandwidth(int multiprocessors) {  // bytes a microsecond
  constexpr int64_t kBytes = int64_t{2} << 30;
  DeviceBuffer from = require(DeviceBuffer::allocate(kBytes)),
               to = require(DeviceBuffer::allocate(16));
  require(from.fill(0));
  const double time = microseconds(2, [&](int, cudaStream_t stream) {
    read_all<<<static_cast<unsigned>(16 * multiprocessors), 256, 0, stream>>>(
        static_cast<const uint4*>(from.data()), kBytes / 16,
        static_cast<unsigned*>(to.data()));
  });
  return kBytes / time;
}

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
    require(cudaMemcpy(all_codes.back().data(), codes.data(),
                       static_cast<size_t>(code_bytes), cudaMemcpyDeviceToDevice));
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
  call.x_scales = static_cast<const float*>(x_scales.data());
  call.y = y.data();
  call.partial = partial.data();
  call.counters = static_cast<uint32_t*>(counters.data());
  const double time = microseconds(copies, [&](int i, cudaStream_t stream) {
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
  const double time = microseconds(copies, [&](int i, cudaStream_t stream) {
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
  return 0;
}

}  // namespace
}  // namespace nibble::cuda

int main(int argc, char** argv) { return nibble::cuda::bench(argc > 1 ? argv[1] : ""); }
