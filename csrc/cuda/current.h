// Which device a thread's CUDA calls go to.
#pragma once

#include <cuda_runtime_api.h>

namespace fastdiff {

// Makes `device` current for its lifetime, since a launch on another device's stream would fail. What was current is
// put back as the driver's context, or none: cudaSetDevice would make a context on a device that has none yet, some
// hundred MB of it, and cudaGetDevice says 0 where nothing was chosen.
class Current {
 public:
  explicit Current(int device) {
    static const Driver loaded;
    driver_ = &loaded;
    error_ = loaded.error;
    if (error_ != cudaSuccess) return;
    int now = 0;
    if (loaded.get_context(&before_) == 0 && before_ && loaded.get_device(&now) == 0 && now == device) return;
    error_ = cudaSetDevice(device);
    changed_ = error_ == cudaSuccess;
  }
  ~Current() {
    if (changed_) driver_->set_context(before_);
  }
  Current(const Current &) = delete;
  Current &operator=(const Current &) = delete;
  cudaError_t error() const { return error_; }

 private:
  // Functions of the driver, found by way of the runtime: the extension is not linked with it.
  struct Driver {
    using GetContext = int (*)(void **);
    using GetDevice = int (*)(int *);
    using SetContext = int (*)(void *);
    GetContext get_context = nullptr;
    GetDevice get_device = nullptr;
    SetContext set_context = nullptr;
    cudaError_t error = cudaSuccess;

    Driver() {
      get_context = reinterpret_cast<GetContext>(find("cuCtxGetCurrent"));
      get_device = reinterpret_cast<GetDevice>(find("cuCtxGetDevice"));
      set_context = reinterpret_cast<SetContext>(find("cuCtxSetCurrent"));
    }
    void *find(const char *name) {
      void *function = nullptr;
      cudaDriverEntryPointQueryResult found{};
      // Version 4.0 is where these got their present form.
#if CUDART_VERSION >= 12050
      const cudaError_t failed = cudaGetDriverEntryPointByVersion(name, &function, 4000, cudaEnableDefault, &found);
#else
      const cudaError_t failed = cudaGetDriverEntryPoint(name, &function, cudaEnableDefault, &found);
#endif
      if (error == cudaSuccess) error = failed;
      if (error == cudaSuccess && !function) error = cudaErrorInsufficientDriver;
      return function;
    }
  };

  const Driver *driver_ = nullptr;
  void *before_ = nullptr;
  bool changed_ = false;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace fastdiff
