// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The user's terminal while a VM's console is on it: raw, and restored whatever happens.
/// Owner thread only.
#include <termios.h>

#include <cstddef>
#include <span>
#include <string>

namespace doppel::cli {

/// Raw mode of standard input while it lives; nothing when standard input is no terminal. The
/// destructor, restore() and the process's fatal signals bring the old mode back.
class RawTerminal {
public:
    RawTerminal();
    ~RawTerminal();
    RawTerminal(const RawTerminal&) = delete;
    RawTerminal& operator=(const RawTerminal&) = delete;

    bool is_terminal() const { return is_terminal_; }
    void enter();
    void restore();

private:
    bool is_terminal_ = false;
    bool is_raw_ = false;
    termios saved_{};
};

/// Finds the escape sequences (Ctrl-A x and the like) in what the user types.
class EscapeFilter {
public:
    enum class Action : unsigned char { None, Quit, Help, Pause, Save };

    /// Appends to `out` what goes to the guest. Stops at the first action, `used` bytes in.
    Action feed(std::span<const char> typed, std::string& out, std::size_t& used);

private:
    static constexpr char kEscape = 1; // Ctrl-A
    Action escaped(char c, std::string& out) const;
    bool after_escape_ = false;
};

/// What Ctrl-A h prints, with line ends for a raw terminal.
extern const char* const kEscapeHelp;

} // namespace doppel::cli
