// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Mutex with clang thread-safety annotations (-Wthread-safety in the clang preset).
/// A Mutex stands directly above the members it guards; they carry DOPPEL_GUARDED_BY.
#include <mutex>

#if defined(__clang__)
#define DOPPEL_THREAD_ANNOTATION(x) __attribute__((x))
#else
#define DOPPEL_THREAD_ANNOTATION(x)
#endif
#define DOPPEL_CAPABILITY(name) DOPPEL_THREAD_ANNOTATION(capability(name))
#define DOPPEL_GUARDED_BY(mutex) DOPPEL_THREAD_ANNOTATION(guarded_by(mutex))
#define DOPPEL_REQUIRES(mutex) DOPPEL_THREAD_ANNOTATION(requires_capability(mutex))
#define DOPPEL_EXCLUDES(mutex) DOPPEL_THREAD_ANNOTATION(locks_excluded(mutex))

namespace doppel::base {

class DOPPEL_CAPABILITY("mutex") Mutex {
public:
    void lock() DOPPEL_THREAD_ANNOTATION(acquire_capability()) { mutex_.lock(); }
    void unlock() DOPPEL_THREAD_ANNOTATION(release_capability()) { mutex_.unlock(); }
    bool try_lock() DOPPEL_THREAD_ANNOTATION(try_acquire_capability(true)) {
        return mutex_.try_lock();
    }

private:
    std::mutex mutex_;
};

class DOPPEL_THREAD_ANNOTATION(scoped_lockable) MutexLock {
public:
    explicit MutexLock(Mutex& mutex) DOPPEL_THREAD_ANNOTATION(acquire_capability(mutex))
        : mutex_{mutex} {
        mutex_.lock();
    }
    ~MutexLock() DOPPEL_THREAD_ANNOTATION(release_capability()) { mutex_.unlock(); }
    MutexLock(const MutexLock&) = delete;
    MutexLock& operator=(const MutexLock&) = delete;

private:
    Mutex& mutex_;
};

} // namespace doppel::base
