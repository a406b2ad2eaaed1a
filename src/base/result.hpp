// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Errors as values: what the host or the user's input does wrong travels up as Result<T>.
/// Guest misbehaviour is never an Error (the guest sees its outcome); our own mistakes are
/// DOPPEL_VERIFY. Any thread.
#include <expected>
#include <string>
#include <utility>

namespace doppel::base {

enum class Errc : unsigned char {
    InvalidArgument, // the user's input; exit code 2 at the command line
    NotFound,
    PermissionDenied,
    AlreadyExists,
    Busy,
    Unsupported, // valid, but not what this build, host or format can do
    Corrupt,     // foreign bytes contradict their specification
    OutOfRange,
    NoSpace,
    OutOfMemory,
    Io,
    Interrupted,
    Internal,
};

/// `text` names the thing, the value and the limit; `field` is a path in the machine description
/// ("memory.size_mib") or empty; `hint` is what to do about it, a full sentence, or empty.
struct Error {
    Errc code = Errc::Internal;
    int os_errno = 0;
    std::string text;
    std::string field;
    std::string hint;

    /// Puts a phrase of context in front: "open 'a.img': " + text.
    Error with_context(const std::string& phrase) && {
        text = phrase + ": " + text;
        return std::move(*this);
    }
    /// One sentence for a person: text, the system's reason and the hint.
    std::string message() const;
};

template <typename T> using Result = std::expected<T, Error>;

/// Builds an unexpected Error from a code and a finished text.
std::unexpected<Error> fail(Errc code, std::string text, std::string hint = {});
/// The same for a failed system call: appends strerror(os_errno), picks the code from it.
std::unexpected<Error> fail_errno(int os_errno, std::string text, std::string hint = {});

} // namespace doppel::base

/// Evaluates to the value of a Result, or returns its error from the enclosing function. Does not
/// nest in one expression (name the inner value).
#define DOPPEL_TRY(expression)                                                                     \
    __extension__({                                                                                \
        auto doppel_try_result = (expression);                                                     \
        if (!doppel_try_result)                                                                    \
            return std::unexpected(std::move(doppel_try_result).error());                          \
        std::move(doppel_try_result).value();                                                      \
    })

/// The same for Result<void>.
#define DOPPEL_TRY_VOID(expression)                                                                \
    do {                                                                                           \
        auto doppel_try_result = (expression);                                                     \
        if (!doppel_try_result)                                                                    \
            return std::unexpected(std::move(doppel_try_result).error());                          \
    } while (false)
