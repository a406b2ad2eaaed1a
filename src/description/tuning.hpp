// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The main optimizations of the translator. Each can be left out: to see what it is worth, and to
/// find out which one is wrong.
#include <array>
#include <cstdint>
#include <string_view>

namespace doppel::description {

struct Tuning {
    bool stack_page = true;      // one check for pushes, pops and accesses near rsp
    bool stack_pointer = true;   // pushes and pops that follow each other move rsp once
    bool shared_checks = true;   // checks are calls, not copies, in code that runs seldom
    bool groups = true;          // one check for accesses through the same registers
    bool flags = true;           // flags that a check clobbers are computed again, not saved
    bool flag_operands = true;   // for that, operands that change are kept
    bool slots = true;           // guest r12 to r15 stay in scratch registers between checks
    bool lend = true;            // or in homes of registers that a block names less
    bool links = true;           // blocks of a page jump to each other
    bool branches = true;        // indirect and far branches find their target in a cache
    bool shared_branches = true; // and when it does not know, in a larger one of all spaces
    bool far_links = true;       // direct branches to other pages each know where theirs is
    bool paired_returns = true;  // returns are predicted by the host's own, as its calls' are
    bool fixed_code = true;      // code near either end of addresses knows where it is
    bool huge_code = true;       // translated code lies in huge pages of the host
    bool cold_apart = true;      // exits and misses do not lie between the bodies of blocks
    bool long_blocks = true;     // a block goes on behind a conditional branch
    bool loops = true;           // hot loops are translated again, with their checks before them
    bool direct = true;          // users who compute run on the host's CPU itself
    bool direct_always = false;  // all users do; for tests
    std::uint32_t busy_calls = 16381;  // of shared checks: that page of code runs often
    std::uint32_t loop_threshold = 32; // jumps back to its beginning that make a loop hot
};

struct TuningName {
    const char* name;
    bool Tuning::* member;
};
inline constexpr std::array kTuningNames{
    TuningName{"stack-page", &Tuning::stack_page},
    TuningName{"stack-pointer", &Tuning::stack_pointer},
    TuningName{"shared-checks", &Tuning::shared_checks},
    TuningName{"groups", &Tuning::groups},
    TuningName{"flags", &Tuning::flags},
    TuningName{"flag-operands", &Tuning::flag_operands},
    TuningName{"slots", &Tuning::slots},
    TuningName{"lend", &Tuning::lend},
    TuningName{"links", &Tuning::links},
    TuningName{"branches", &Tuning::branches},
    TuningName{"shared-branches", &Tuning::shared_branches},
    TuningName{"far-links", &Tuning::far_links},
    TuningName{"paired-returns", &Tuning::paired_returns},
    TuningName{"fixed-code", &Tuning::fixed_code},
    TuningName{"huge-code", &Tuning::huge_code},
    TuningName{"cold-apart", &Tuning::cold_apart},
    TuningName{"long-blocks", &Tuning::long_blocks},
    TuningName{"loops", &Tuning::loops},
    TuningName{"direct", &Tuning::direct},
};

} // namespace doppel::description
