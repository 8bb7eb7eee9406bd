// Memory of our own: aligned to 64 bytes, zero at first, with room after its end for vectors and prefetches.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace zeropoint {

template <class T>
class Buffer {
   public:
    Buffer() = default;
    explicit Buffer(size_t count) : count_(count) {
        const size_t bytes = (count * sizeof(T) + 63) / 64 * 64 + 64;
        data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
        if (!data_) throw std::bad_alloc();
        std::memset(static_cast<void*>(data_), 0, bytes);
    }
    ~Buffer() { std::free(data_); }
    Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(count_, other.count_);
        return *this;
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    T* data() { return data_; }
    const T* data() const { return data_; }
    size_t size() const { return count_; }
    explicit operator bool() const { return data_; }

   private:
    T* data_ = nullptr;
    size_t count_ = 0;
};

}  // namespace zeropoint
