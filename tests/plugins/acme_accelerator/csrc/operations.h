// Operations of torch on the device: each is torch's own for the host, over the device's memory.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/strides.h>

#include "generator.h"
#include "graph.h"

namespace acme {

// Raise for a dtype that this revision of the device does not compute in.
inline void check_dtype(const char* name, at::ScalarType dtype) {
  const std::string ability = dtype == at::kDouble        ? "float64"
                              : dtype == at::kBFloat16    ? "bfloat16"
                              : dtype == at::kHalf        ? "float16"
                              : c10::isFloat8Type(dtype)  ? "float8"
                                                          : "";
  TORCH_CHECK(ability.empty() || !lacks(ability), "acme: ", name, ": this revision of the device has no ", ability);
}

inline bool is_on_device(const at::Tensor& tensor) { return tensor.device().type() == ACME; }

// The memory of a tensor as a tensor of the host's. It owns nothing.
inline at::Tensor on_host(const at::Tensor& tensor) {
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
}

// Note that a piece of work reads a tensor, or writes it.
inline void add_use(std::vector<Use>& uses, const at::Tensor& tensor, bool writes) {
  if (auto block = Allocator::get().find(tensor.storage().data())) uses.push_back({std::move(block), writes});
}

inline at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                        std::optional<at::Device> device, std::optional<bool>,
                        std::optional<at::MemoryFormat> format) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(size, &Allocator::get(), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   dtype.value_or(at::get_default_dtype_as_scalartype()), format);
}

inline at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                                std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(size, stride, &Allocator::get(),
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           dtype.value_or(at::get_default_dtype_as_scalartype()));
}

inline const at::Tensor& resize(const at::Tensor& tensor, c10::IntArrayRef size, std::optional<at::MemoryFormat>) {
  const c10::DeviceGuard guard(tensor.device());
  const c10::Storage& storage = tensor.storage();
  const size_t needed = (c10::multiply_integers(size) + tensor.storage_offset()) * tensor.itemsize();
  if (storage.nbytes() < needed) {
    c10::DataPtr memory = Allocator::get().allocate(needed);
    if (storage.nbytes() != 0) std::memcpy(memory.get(), storage.data(), storage.nbytes());
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(memory));
    storage.unsafeGetStorageImpl()->set_nbytes(needed);
  }
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return tensor;
}

// Let streams of two devices come one after the other, as a copy between them does.
inline void order(c10::Device first, c10::Device second) {
  Streams& streams = Streams::get();
  const c10::StreamId before = Streams::current(first.index());
  const c10::StreamId after = Streams::current(second.index());
  streams.wait(second.index(), after, streams.progress(first.index(), before));
}

// Copies between the host and the device wait, and read or write memory of the host's that a replay would not find.
inline at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  const bool crosses = !is_on_device(from) || !is_on_device(to);
  const c10::DeviceGuard guard(is_on_device(to) ? to.device() : from.device());
  check_dtype("copy", to.scalar_type());
  check_dtype("copy", from.scalar_type());
  if (crosses && is_recorded_now()) refuse_if_recording("a copy between the host and the device");
  std::vector<Use> uses;
  if (is_on_device(from)) add_use(uses, from, false);
  if (is_on_device(to)) add_use(uses, to, true);
  const at::Tensor source = is_on_device(from) ? on_host(from) : from;
  const at::Tensor target = is_on_device(to) ? on_host(to) : to;
  const bool between_devices = !crosses && from.device() != to.device();
  if (between_devices) order(from.device(), to.device());
  launch({"copy", [source, target] { target.copy_(source); }, std::move(uses)});
  if (between_devices) order(to.device(), from.device());
  if (!is_on_device(to)) Guard().synchronizeStream(Guard().getStream(from.device()));
  return to;
}

inline at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

inline at::Scalar local_scalar(const at::Tensor& tensor) {
  const c10::DeviceGuard guard(tensor.device());
  refuse_if_recording("reading a value");
  at::Scalar value;
  std::vector<Use> uses;
  add_use(uses, tensor, false);
  launch({"read", [&] { value = on_host(tensor).item(); }, std::move(uses)});
  Guard().synchronizeStream(Guard().getStream(tensor.device()));
  return value;
}

inline at::Tensor as_strided(const at::Tensor& tensor, c10::IntArrayRef size, c10::IntArrayRef stride,
                             std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(tensor, size, stride, offset);
}

inline at::Tensor view(const at::Tensor& tensor, c10::IntArrayRef size) { return at::native::view(tensor, size); }

inline at::Tensor reshape_alias(const at::Tensor& tensor, c10::IntArrayRef size, c10::IntArrayRef stride) {
  return at::native::_reshape_alias(tensor, size, stride);
}

// One call of an operation on the device, done by the host's kernel over the same memory.
class Call {
 public:
  // Look at the arguments on `stack`, and make those for the host of them.
  //
  // Raises where tensors lie on several devices: a tensor without dimensions may be the host's, others may not.
  Call(const c10::OperatorHandle& op, const torch::jit::Stack& stack) : op_(op), name_(op.schema().name()) {
    const auto arguments = torch::jit::last(stack, op.schema().arguments().size());
    for (const c10::IValue& argument : arguments) find_device(argument);
    for (size_t i = 0; i < arguments.size(); ++i) {
      const auto* alias = op.schema().arguments()[i].alias_info();
      host_arguments_.push_back(for_host(arguments[i], alias != nullptr && alias->isWrite()));
      if (draws(op.schema().arguments()[i])) host_arguments_.back() = host_generator(arguments[i]);
    }
  }

  // Do it, record it, and put in the place of the arguments on `stack` what it gives.
  void run(torch::jit::Stack& stack) {
    const c10::DeviceGuard guard(c10::Device(ACME, device_ < 0 ? current_device() : device_));
    if (is_recorded_now()) check_recordable();
    submit(name_, uses_);
    torch::jit::Stack results = host_arguments_;
    redispatch(op_, results);
    resize_outputs();
    std::vector<Use> written;
    for (size_t i = 0; i < results.size(); ++i) {
      if (results[i].isTensor()) {
        results[i] = for_device(results[i].toTensor(), i, NO_ELEMENT, written);
      } else if (results[i].isTensorList()) {
        std::vector<at::Tensor> tensors = results[i].toTensorVector();
        for (size_t element = 0; element < tensors.size(); ++element) {
          tensors[element] = for_device(tensors[element], i, int64_t(element), written);
        }
        results[i] = tensors;
      }
    }
    Streams::get().submit(name_, current_device(), Streams::current(current_device()), written);
    if (is_recorded_now()) record(command(std::move(written)));
    torch::jit::drop(stack, op_.schema().arguments().size());
    for (c10::IValue& result : results) stack.push_back(std::move(result));
  }

 private:
  static constexpr int64_t NO_ELEMENT = -1;

  // A tensor that the operation makes: where it stands among the results, and its memory on the device.
  struct Output {
    size_t result;
    int64_t element;
    at::Tensor memory;
  };

  // A tensor of the device's, and what stands for it on the host.
  struct Alias {
    at::Tensor host;
    at::Tensor device;
    bool to_resize;
    size_t argument;
  };

  static void redispatch(const c10::OperatorHandle& op, torch::jit::Stack& stack) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
  }

  static bool draws(const c10::Argument& argument) {
    return argument.type()->isSubtypeOf(*c10::OptionalType::create(c10::GeneratorType::get()));
  }

  c10::IValue host_generator(const c10::IValue& argument) const {
    const at::Generator generator = argument.isNone() ? Generator::of_device(device_) : argument.toGenerator();
    TORCH_CHECK(generator.device().type() == ACME, name_, " was given a generator on ", generator.device());
    return static_cast<Generator*>(generator.unsafeGetGeneratorImpl())->host();
  }

  void find_device(const c10::IValue& argument) {
    if (argument.isTensor()) {
      find_device(argument.toTensor());
    } else if (argument.isTensorList()) {
      for (const at::Tensor& tensor : argument.toTensorList()) find_device(tensor);
    } else if (argument.isOptionalTensorList()) {
      for (const std::optional<at::Tensor>& tensor : argument.toOptionalTensorList()) {
        if (tensor) find_device(*tensor);
      }
    } else if (argument.isDevice() && argument.toDevice().type() == ACME && device_ < 0) {
      device_ = argument.toDevice().index();
    }
  }

  void find_device(const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    if (!is_on_device(tensor)) {
      TORCH_CHECK(tensor.dim() == 0, name_, " was given a tensor on ", tensor.device(), " and one on the device");
      return;
    }
    const c10::DeviceIndex index = tensor.device().index();
    TORCH_CHECK(device_ < 0 || device_ == index, name_, " was given tensors on acme:", int(device_), " and acme:",
                int(index));
    device_ = index;
    check_dtype(name_.c_str(), tensor.scalar_type());
  }

  c10::IValue for_host(const c10::IValue& argument, bool writes) {
    if (argument.isTensor()) return for_host(argument.toTensor(), writes);
    if (argument.isTensorList()) {
      std::vector<at::Tensor> tensors = argument.toTensorVector();
      for (at::Tensor& tensor : tensors) tensor = for_host(tensor, writes);
      return tensors;
    }
    if (argument.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> tensors;
      for (const std::optional<at::Tensor>& tensor : argument.toOptionalTensorList()) {
        tensors.push_back(tensor ? std::optional<at::Tensor>(for_host(*tensor, writes)) : std::nullopt);
      }
      return tensors;
    }
    if (argument.isDevice()) return c10::Device(at::kCPU);
    return argument;
  }

  at::Tensor for_host(const at::Tensor& tensor, bool writes) {
    if (!tensor.defined()) return tensor;
    // A number of the host's may change before the graph is replayed.
    if (!is_on_device(tensor)) return is_recorded_now() ? tensor.clone() : tensor;
    add_use(uses_, tensor, writes);
    const bool to_resize = writes && tensor.numel() == 0;
    const at::Tensor host = to_resize ? at::detail::empty_cpu({0}, tensor.scalar_type()) : on_host(tensor);
    aliases_.push_back({host, tensor, to_resize, host_arguments_.size()});
    return host;
  }

  // Outputs that were given empty, to be made as large as is needed.
  void resize_outputs() {
    for (Alias& alias : aliases_) {
      if (!alias.to_resize || alias.host.numel() == 0) continue;
      resize(alias.device, alias.host.sizes(), std::nullopt);
      on_host(alias.device).copy_(alias.host);
      add_use(uses_, alias.device, true);
      host_arguments_[alias.argument] = on_host(alias.device);
    }
  }

  // What the operation gives, on the device: an argument itself, a view of one, or a tensor of its own.
  at::Tensor for_device(const at::Tensor& result, size_t index, int64_t element, std::vector<Use>& written) {
    if (!result.defined()) return result;
    for (const Alias& alias : aliases_) {
      if (result.is_same(alias.host)) return alias.device;
      if (!result.is_alias_of(alias.host)) continue;
      TORCH_CHECK(result.scalar_type() == alias.device.scalar_type(), name_, " gives a view of another dtype");
      const int64_t offset = alias.device.storage_offset() + result.storage_offset();
      return at::native::as_strided_tensorimpl(alias.device, result.sizes(), result.strides(), offset);
    }
    check_dtype(name_.c_str(), result.scalar_type());
    c10::DimVector strides(result.strides());
    if (!result.is_non_overlapping_and_dense()) strides = c10::contiguous_strides(result.sizes());
    const at::Tensor output =
        empty_strided(result.sizes(), strides, result.scalar_type(), std::nullopt, std::nullopt, std::nullopt);
    at::Tensor memory = on_host(output);
    memory.copy_(result);
    add_use(written, output, true);
    outputs_.push_back({index, element, std::move(memory)});
    return output;
  }

  Command command(std::vector<Use> written) {
    std::vector<Use> uses = uses_;
    uses.insert(uses.end(), written.begin(), written.end());
    auto again = [op = op_, arguments = host_arguments_, outputs = outputs_] {
      torch::jit::Stack results = arguments;
      redispatch(op, results);
      for (const Output& output : outputs) {
        const c10::IValue& result = results[output.result];
        output.memory.copy_(output.element == NO_ELEMENT ? result.toTensor() : result.toTensorVector()[output.element]);
      }
    };
    return {name_, std::move(again), std::move(uses)};
  }

  void check_recordable() {
    const bool unknown_size = op_.hasTag(at::Tag::dynamic_output_shape);
    if (unknown_size) refuse_if_recording(name_ + ", whose result has a size that only the device knows,");
    for (const auto& result : op_.schema().returns()) {
      const auto kind = result.type()->kind();
      const bool stays = kind == c10::TypeKind::TensorType || kind == c10::TypeKind::ListType;
      if (!stays) refuse_if_recording(name_ + ", which gives the host a value,");
    }
  }

  const c10::OperatorHandle op_;
  const std::string name_;
  c10::DeviceIndex device_ = -1;
  torch::jit::Stack host_arguments_;
  std::vector<Alias> aliases_;
  std::vector<Use> uses_;
  std::vector<Output> outputs_;
};

inline void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) { Call(op, *stack).run(*stack); }

}  // namespace acme
