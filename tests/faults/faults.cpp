// Faults of a disk, made on purpose: preloaded, it counts what a process does to files below a folder, and at one
// of these calls kills the process or lets the call fail.
//
//     c++ -shared -fPIC -O1 -o faults.so faults.cpp -ldl           LD_PRELOAD=faults.so python ...
//
// Nothing happens before faults_arm(): the process can import what it needs, and fork, at full speed.

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <csignal>
#include <dlfcn.h>
#include <fcntl.h>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace {

enum Kind { kill_before, kill_torn, fail, cut_short };

std::string folder;
std::string wanted;  // the name of a call, or "" for any
long at = 0;         // fault at the so-and-so-many-th call, from 1; 0: never, count only
Kind kind = fail;
int error = 0;
volatile long count = 0;

template <typename F>
F next(const char* name) {
    return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

bool below(const char* path) {
    return path != nullptr && std::strncmp(path, folder.c_str(), folder.size()) == 0;
}

bool below(int descriptor) {
    char link[64], path[4096];
    std::snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    const ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return false;
    path[size] = 0;
    return below(path);
}

bool below(int descriptor, const char* path) {
    return path[0] == '/' ? below(path) : descriptor != AT_FDCWD && below(descriptor);
}

// Say whether this call is the one.
template <typename... Where>
bool hit(const char* call, Where... where) {
    if (folder.empty() || (!wanted.empty() && wanted != call) || !below(where...)) return false;
    return __sync_add_and_fetch(&count, 1) == at;
}

void die() {
    raise(SIGKILL);
}

// Die here, or set errno for the failing return.
int refuse() {
    if (kind == kill_before || kind == kill_torn) die();
    errno = error;
    return -1;
}

}  // namespace

extern "C" {

void faults_arm(const char* below_folder, const char* call, long at_call, int what, int number) {
    wanted = call;
    at = at_call;
    kind = static_cast<Kind>(what);
    error = number;
    count = 0;
    folder = below_folder;
}

long faults_count() {
    return count;
}

ssize_t write(int descriptor, const void* data, size_t size) {
    static auto real = next<ssize_t (*)(int, const void*, size_t)>("write");
    if (hit("write", descriptor)) {
        if (kind == kill_torn || kind == cut_short) {
            const ssize_t done = real(descriptor, data, size > 1 ? size / 2 : size);
            if (kind == kill_torn) die();
            return done;
        }
        return refuse();
    }
    return real(descriptor, data, size);
}

ssize_t read(int descriptor, void* data, size_t size) {
    static auto real = next<ssize_t (*)(int, void*, size_t)>("read");
    if (hit("read", descriptor)) {
        if (kind == cut_short) return real(descriptor, data, size > 1 ? size / 2 : size);
        return refuse();
    }
    return real(descriptor, data, size);
}

int fsync(int descriptor) {
    static auto real = next<int (*)(int)>("fsync");
    return hit("fsync", descriptor) && kind != cut_short ? refuse() : real(descriptor);
}

int ftruncate64(int descriptor, off64_t size) {
    static auto real = next<int (*)(int, off64_t)>("ftruncate64");
    return hit("ftruncate", descriptor) && kind != cut_short ? refuse() : real(descriptor, size);
}

int rename(const char* from, const char* to) {
    static auto real = next<int (*)(const char*, const char*)>("rename");
    return hit("rename", from) && kind != cut_short ? refuse() : real(from, to);
}

int unlink(const char* path) {
    static auto real = next<int (*)(const char*)>("unlink");
    return hit("unlink", path) && kind != cut_short ? refuse() : real(path);
}

int unlinkat(int descriptor, const char* path, int flags) {
    static auto real = next<int (*)(int, const char*, int)>("unlinkat");
    return hit("unlink", descriptor, path) && kind != cut_short ? refuse() : real(descriptor, path, flags);
}

int mkdir(const char* path, mode_t mode) {
    static auto real = next<int (*)(const char*, mode_t)>("mkdir");
    return hit("mkdir", path) && kind != cut_short ? refuse() : real(path, mode);
}

int open64(const char* path, int flags, ...) {
    static auto real = next<int (*)(const char*, int, ...)>("open64");
    va_list more;
    va_start(more, flags);
    const mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;
    va_end(more);
    return (flags & O_CREAT) && hit("open", path) && kind != cut_short ? refuse() : real(path, flags, mode);
}

void* mmap64(void* where, size_t size, int protection, int flags, int descriptor, off64_t offset) {
    static auto real = next<void* (*)(void*, size_t, int, int, int, off64_t)>("mmap64");
    if (descriptor >= 0 && hit("mmap", descriptor) && kind != cut_short) {
        refuse();
        return MAP_FAILED;
    }
    return real(where, size, protection, flags, descriptor, offset);
}

}  // extern "C"
