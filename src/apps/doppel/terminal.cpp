// SPDX-License-Identifier: Apache-2.0
#include "apps/doppel/terminal.hpp"

#include <unistd.h>

namespace doppel::cli {

const char* const kEscapeHelp = "\r\n"
                                "Ctrl-A x       end the VM at once\r\n"
                                "Ctrl-A p       pause the VM, or let it go on\r\n"
                                "Ctrl-A s       save the VM to NAME.state in this folder\r\n"
                                "Ctrl-A h       this help\r\n"
                                "Ctrl-A Ctrl-A  send Ctrl-A to the guest\r\n";

RawTerminal::RawTerminal() { is_terminal_ = ::tcgetattr(STDIN_FILENO, &saved_) == 0; }
RawTerminal::~RawTerminal() { restore(); }

void RawTerminal::enter() {
    if (!is_terminal_)
        return;
    auto raw = saved_;
    ::cfmakeraw(&raw);
    raw.c_oflag |= OPOST & saved_.c_oflag; // our own messages keep their line ends
    is_raw_ = ::tcsetattr(STDIN_FILENO, TCSADRAIN, &raw) == 0;
}

void RawTerminal::restore() {
    if (is_raw_)
        ::tcsetattr(STDIN_FILENO, TCSADRAIN, &saved_);
    is_raw_ = false;
}

EscapeFilter::Action EscapeFilter::escaped(char c, std::string& out) const {
    switch (c) {
    case 'x':
    case 'X': return Action::Quit;
    case 'p':
    case 'P': return Action::Pause;
    case 's':
    case 'S': return Action::Save;
    case 'h':
    case 'H':
    case '?': return Action::Help;
    case kEscape: out += kEscape; return Action::None;
    default: out += {kEscape, c}; return Action::None; // not ours: the guest gets both
    }
}

EscapeFilter::Action EscapeFilter::feed(std::span<const char> typed, std::string& out,
                                        std::size_t& used) {
    for (used = 0; used < typed.size();) {
        const char c = typed[used++];
        if (after_escape_) {
            after_escape_ = false;
            if (const auto action = escaped(c, out); action != Action::None)
                return action;
        } else if (c == kEscape) {
            after_escape_ = true;
        } else {
            out += c;
        }
    }
    return Action::None;
}

} // namespace doppel::cli
