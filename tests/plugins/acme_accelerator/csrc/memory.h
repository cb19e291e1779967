// Memory of the device: the host's, in blocks that are kept for the next tensor of their size.
#pragma once

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

namespace acme {

constexpr auto ACME = c10::DeviceType::PrivateUse1;
constexpr c10::DeviceIndex DEVICE_COUNT = 2;

// What this revision of the device cannot do: words of the environment variable ACME_LACKS.
inline bool lacks(const std::string& ability) {
  static const std::string words = [] {
    const char* value = std::getenv("ACME_LACKS");
    return "," + std::string(value ? value : "") + ",";
  }();
  return words.find("," + ability + ",") != std::string::npos;
}

inline c10::DeviceIndex& current_device() {
  thread_local c10::DeviceIndex index = 0;
  return index;
}

inline void check_device(c10::DeviceIndex index) {
  TORCH_CHECK(0 <= index && index < DEVICE_COUNT, "acme: there is no device ", int(index), ", the last is ",
              int(DEVICE_COUNT - 1));
}

// What has been done so far in this process; read from Python as `torch.acme.counters()`.
struct Counters {
  int64_t allocations = 0;
  int64_t out_of_memory = 0;
  int64_t operations = 0;
  int64_t operations_at_high_clock = 0;
  int64_t rms_norm = 0;
  int64_t store_kv = 0;
  int64_t captures = 0;
  int64_t recorded_operations = 0;
  int64_t replays = 0;
  int64_t replayed_operations = 0;
};

inline Counters& counters() {
  static Counters the_counters;
  return the_counters;
}

// Which work a stream has reached, by stream: the entry of another stream is how much of that one it has waited for.
using Progress = std::map<c10::StreamId, int64_t>;

// A piece of memory, and who used it last: what is written on one stream must not be touched on another before that
// one has waited.
struct Block {
  void* memory;
  size_t bytes;
  c10::DeviceIndex device;
  c10::MempoolId_t pool;
  Progress written;
  Progress read;
};

constexpr c10::MempoolId_t GENERAL_POOL{0, 0};

class Allocator final : public c10::DeviceAllocator {
 public:
  // The allocator is used until the last tensor has gone, which may be after static objects have.
  static Allocator& get() {
    static Allocator* allocator = new Allocator;
    return *allocator;
  }

  // The pool that memory comes from on this thread: a graph's own while one is recorded.
  static c10::MempoolId_t& current_pool() {
    thread_local c10::MempoolId_t pool = GENERAL_POOL;
    return pool;
  }

  c10::DataPtr allocate(size_t bytes) override {
    const c10::DeviceIndex device = current_device();
    void* memory = bytes == 0 ? nullptr : take(bytes, device, current_pool());
    return {memory, memory, &Allocator::give_back, c10::Device(ACME, device)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &Allocator::give_back; }

  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }

  bool initialized() override { return true; }

  void emptyCache(c10::MempoolId_t) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    release_unused(GENERAL_POOL);
  }

  // Work is done when it has been submitted, so that memory can be used again as soon as it is given back.
  void recordStream(const c10::DataPtr&, c10::Stream) override {}

  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    check_device(device);
    const std::lock_guard<std::mutex> lock(mutex_);
    c10::CachingDeviceAllocator::DeviceStats stats;
    stats.allocated_bytes[0].current = in_use_[device];
    stats.allocated_bytes[0].peak = peak_[device];
    stats.reserved_bytes[0].current = reserved_[device];
    stats.reserved_bytes[0].peak = reserved_peak_[device];
    stats.num_ooms = counters().out_of_memory;
    return stats;
  }

  void resetAccumulatedStats(c10::DeviceIndex device) override { check_device(device); }

  void resetPeakStats(c10::DeviceIndex device) override {
    check_device(device);
    const std::lock_guard<std::mutex> lock(mutex_);
    peak_[device] = in_use_[device];
    reserved_peak_[device] = reserved_[device];
  }

  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex device) override {
    check_device(device);
    const std::lock_guard<std::mutex> lock(mutex_);
    return {capacity_ - size_t(reserved_[device]), capacity_};
  }

  // The block that an address lies in; null where it is none of the device's.
  std::shared_ptr<Block> find(const void* address) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto after = blocks_.upper_bound(reinterpret_cast<uintptr_t>(address));
    if (after == blocks_.begin()) return nullptr;
    const auto& block = std::prev(after)->second;
    const auto* first = static_cast<const char*>(block->memory);
    return address < first + block->bytes ? block : nullptr;
  }

  void create_pool(c10::MempoolId_t pool) {
    const std::lock_guard<std::mutex> lock(mutex_);
    pool_users_[pool] = 1;
  }

  void share_pool(c10::MempoolId_t pool) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto users = pool_users_.find(pool);
    TORCH_CHECK(users != pool_users_.end(), "acme: the memory pool to share has gone with the last graph that used it");
    ++users->second;
  }

  // What a pool holds goes when the last graph that uses it has gone.
  void release_pool(c10::MempoolId_t pool) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--pool_users_[pool] > 0) return;
    pool_users_.erase(pool);
    release_unused(pool);
    // A tensor that outlives its graph keeps its block; it goes to the general pool when the tensor does.
    for (auto& [address, block] : blocks_) {
      if (block->pool == pool) block->pool = GENERAL_POOL;
    }
  }

 private:
  static constexpr size_t GRAIN = 512;
  static constexpr size_t LARGE = size_t(1) << 24;

  static size_t capacity_from_environment() {
    const char* mebibytes = std::getenv("ACME_MEMORY_MIB");
    return size_t(mebibytes ? std::atoll(mebibytes) : 512) << 20;
  }

  static void give_back(void* memory) {
    if (memory != nullptr) get().put(memory);
  }

  void* take(size_t asked, c10::DeviceIndex device, c10::MempoolId_t pool) {
    const size_t bytes = (asked + GRAIN - 1) / GRAIN * GRAIN;
    const std::lock_guard<std::mutex> lock(mutex_);
    std::shared_ptr<Block> block = take_unused(bytes, device, pool);
    if (block == nullptr) {
      if (reserved_[device] + bytes > capacity_) release_unused(GENERAL_POOL);
      if (reserved_[device] + bytes > capacity_) {
        ++counters().out_of_memory;
        TORCH_CHECK_WITH(OutOfMemoryError, false, "acme:", int(device), " is out of memory: ", asked,
                         " bytes were asked for, ", in_use_[device], " of ", capacity_, " are in use");
      }
      void* memory = std::aligned_alloc(GRAIN, bytes);
      TORCH_CHECK_WITH(OutOfMemoryError, memory != nullptr, "acme: the host has no ", bytes, " bytes left");
      spoil(memory, bytes);
      block = std::make_shared<Block>(Block{memory, bytes, device, pool, {}, {}});
      blocks_[reinterpret_cast<uintptr_t>(memory)] = block;
      reserved_[device] += bytes;
      reserved_peak_[device] = std::max(reserved_peak_[device], reserved_[device]);
    }
    // Whoever had it before is done with it.
    block->written.clear();
    block->read.clear();
    in_use_[device] += block->bytes;
    peak_[device] = std::max(peak_[device], in_use_[device]);
    ++counters().allocations;
    return block->memory;
  }

  std::shared_ptr<Block> take_unused(size_t bytes, c10::DeviceIndex device, c10::MempoolId_t pool) {
    auto& unused = unused_[{pool, device}];
    auto found = unused.lower_bound(bytes);
    if (found == unused.end() || found->first > 2 * bytes) return nullptr;
    auto block = found->second;
    unused.erase(found);
    return block;
  }

  void put(void* memory) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto block = blocks_.at(reinterpret_cast<uintptr_t>(memory));
    in_use_[block->device] -= block->bytes;
    spoil(memory, block->bytes);
    unused_[{block->pool, block->device}].emplace(block->bytes, block);
  }

  void release_unused(c10::MempoolId_t pool) {
    for (c10::DeviceIndex device = 0; device < DEVICE_COUNT; ++device) {
      auto& unused = unused_[{pool, device}];
      for (auto& [bytes, block] : unused) {
        reserved_[device] -= bytes;
        blocks_.erase(reinterpret_cast<uintptr_t>(block->memory));
        std::free(block->memory);
      }
      unused.clear();
    }
  }

  // Ones in every bit are NaN in every float: whoever reads what was never written, or was given back, sees it.
  static void spoil(void* memory, size_t bytes) {
    if (bytes <= LARGE) std::memset(memory, 0xff, bytes);
  }

  std::mutex mutex_;
  const size_t capacity_ = capacity_from_environment();
  std::map<uintptr_t, std::shared_ptr<Block>> blocks_;
  std::map<std::pair<c10::MempoolId_t, c10::DeviceIndex>, std::multimap<size_t, std::shared_ptr<Block>>> unused_;
  std::map<c10::MempoolId_t, int64_t> pool_users_;
  std::array<int64_t, DEVICE_COUNT> in_use_{};
  std::array<int64_t, DEVICE_COUNT> peak_{};
  std::array<int64_t, DEVICE_COUNT> reserved_{};
  std::array<int64_t, DEVICE_COUNT> reserved_peak_{};
};

}  // namespace acme
