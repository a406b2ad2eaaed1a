// SPDX-License-Identifier: Apache-2.0
/// doppel-img: what `doppel img` does, in an executable that stands wherever a script calls a
/// qemu-img binary, and that starts quickly.
#include "img/command.hpp"

int main(int argc, char** argv) {
    const std::span<const char* const> words{argv, static_cast<std::size_t>(argc)};
    return doppel::img::run("doppel-img", words.subspan(argc > 0 ? 1 : 0));
}
