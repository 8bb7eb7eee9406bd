// Memory of our own: aligned to 64 bytes, zero at first, with room after its end for vectors and prefetches.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "pages.h"

namespace zeropoint {

template <class T>
class Buffer {
   public:
    Buffer() = default;
    explicit Buffer(size_t count) : count_(count), release_(std::free) {
        data_ = static_cast<T*>(std::aligned_alloc(64, bytes_of(count)));
        if (!data_) throw std::bad_alloc();
        std::memset(static_cast<void*>(data_), 0, bytes_of(count));
    }
    ~Buffer() { if (data_) release_(data_); }
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        swap(other);
        return *this;
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    // Of what is streamed through for every token and lives as long as a model.
    static Buffer in_huge_pages(size_t count) {
        Buffer made;
        made.data_ = static_cast<T*>(take_pages(bytes_of(count)));
        made.count_ = count;
        made.release_ = give_pages_back;
        return made;
    }

    T* data() { return data_; }
    const T* data() const { return data_; }
    size_t size() const { return count_; }
    explicit operator bool() const { return data_; }

   private:
    static size_t bytes_of(size_t count) { return (count * sizeof(T) + 63) / 64 * 64 + 64; }
    void swap(Buffer& other) {
        std::swap(data_, other.data_);
        std::swap(count_, other.count_);
        std::swap(release_, other.release_);
    }

    T* data_ = nullptr;
    size_t count_ = 0;
    void (*release_)(void*) = nullptr;
};

}  // namespace zeropoint
