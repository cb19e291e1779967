// Kernels that only this device has.
#pragma once

#include <cmath>

#include "operations.h"

namespace acme {

// One row of root-mean-square normalisation. Squares are added in double precision: their order does not matter then.
template <typename T>
void normalize_row(const T* x, const T* weight, T* out, int64_t size, double eps) {
  double squares = 0.0;
  for (int64_t i = 0; i < size; ++i) squares += double(x[i]) * double(x[i]);
  const float scale = float(1.0 / std::sqrt(squares / double(size) + eps));
  // As checkpoints are trained: normalised in float32, rounded to the dtype, and only then scaled by the weight.
  for (int64_t i = 0; i < size; ++i) out[i] = T(float(T(float(x[i]) * scale)) * float(weight[i]));
}

template <typename T>
std::function<void()> normalize(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& out, double eps) {
  // Addresses, not tensors: a graph keeps nothing alive.
  return [from = x.const_data_ptr<T>(), scale = weight.const_data_ptr<T>(), to = out.mutable_data_ptr<T>(),
          rows = x.numel() / x.size(-1), size = x.size(-1), eps] {
    for (int64_t row = 0; row < rows; ++row) normalize_row(from + row * size, scale, to + row * size, size, eps);
  };
}

// x [..., size], weight [size], both of one dtype and contiguous, to [..., size].
inline at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  TORCH_CHECK(x.scalar_type() == weight.scalar_type(), "acme::rms_norm: x is ", x.scalar_type(), ", its weight ",
              weight.scalar_type());
  TORCH_CHECK(weight.dim() == 1 && x.size(-1) == weight.size(0) && weight.is_contiguous(), "acme::rms_norm: x is ",
              x.sizes(), ", its weight ", weight.sizes());
  const c10::DeviceGuard guard(x.device());
  check_dtype("acme::rms_norm", x.scalar_type());
  const at::Tensor rows = x.contiguous();
  const auto none = std::nullopt;
  const at::Tensor out = empty(rows.sizes(), rows.scalar_type(), none, none, none, none);
  std::vector<Use> uses;
  add_use(uses, rows, false);
  add_use(uses, weight, false);
  add_use(uses, out, true);
  std::function<void()> run;
  switch (x.scalar_type()) {
    case at::kFloat: run = normalize<float>(rows, weight, out, eps); break;
    case at::kHalf: run = normalize<at::Half>(rows, weight, out, eps); break;
    case at::kBFloat16: run = normalize<at::BFloat16>(rows, weight, out, eps); break;
    default: TORCH_CHECK(false, "acme::rms_norm is not written for ", x.scalar_type());
  }
  ++counters().rms_norm;
  launch({"acme::rms_norm", std::move(run), std::move(uses)});
  return out;
}

// Put rows [T, heads, dim] into slots [T] of a buffer [heads, N, dim] whose heads lie one after the other.
inline void store_kv(const at::Tensor& buffer, const at::Tensor& slots, const at::Tensor& rows) {
  TORCH_CHECK(buffer.dim() == 3 && rows.dim() == 3 && slots.dim() == 1 && rows.size(0) == slots.size(0) &&
                  rows.size(1) == buffer.size(0) && rows.size(2) == buffer.size(2),
              "acme::store_kv: rows ", rows.sizes(), " and slots ", slots.sizes(), " for a buffer ", buffer.sizes());
  TORCH_CHECK(slots.scalar_type() == at::kLong && rows.scalar_type() == buffer.scalar_type(),
              "acme::store_kv: rows are ", rows.scalar_type(), ", the buffer is ", buffer.scalar_type());
  TORCH_CHECK(buffer.is_contiguous() && rows.stride(2) == 1 && slots.device() == buffer.device() &&
                  rows.device() == buffer.device(),
              "acme::store_kv: rows and slots must be on the buffer's device, and elements of a row side by side");
  const c10::DeviceGuard guard(buffer.device());
  std::vector<Use> uses;
  add_use(uses, slots, false);
  add_use(uses, rows, false);
  add_use(uses, buffer, true);
  const auto bytes = int64_t(buffer.itemsize());
  auto run = [to = static_cast<char*>(buffer.mutable_data_ptr()), at = slots.const_data_ptr<int64_t>(),
              from = static_cast<const char*>(rows.const_data_ptr()), tokens = rows.size(0), heads = rows.size(1),
              capacity = buffer.size(1), row = rows.size(2) * bytes, token_step = rows.stride(0) * bytes,
              head_step = rows.stride(1) * bytes] {
    for (int64_t token = 0; token < tokens; ++token) {
      TORCH_CHECK(0 <= at[token] && at[token] < capacity, "acme::store_kv: there is no slot ", at[token]);
      for (int64_t head = 0; head < heads; ++head) {
        std::memcpy(to + (head * capacity + at[token]) * row, from + token * token_step + head * head_step, row);
      }
    }
  };
  ++counters().store_kv;
  launch({"acme::store_kv", std::move(run), std::move(uses)});
}

}  // namespace acme
