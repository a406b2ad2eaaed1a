// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What the translating vCPUs of one VM share: the code cache, and the means to make all of them
/// stand still.
///
/// Self-modifying code. A page becomes a code page before its bytes are translated: its state gets
/// kPageCode, and every vCPU loses its write permission for it, both while no vCPU runs. From then
/// on each write to it takes a slow path that ends in GuestMemory, which tells us before and after
/// the bytes change: blocks that overlap the write die both times, so that a block made in between
/// from half-changed bytes dies as well.
#include <memory>
#include <mutex>
#include <vector>

#include "base/result.hpp"
#include "cpu/rendezvous.hpp"
#include "cpu/translator/cache/code_cache.hpp"
#include "cpu/x86/frontend/block_scan.hpp"
#include "cpu/x86/frontend/dispatch/dispatcher.hpp"
#include "memory/guest_memory.hpp"

namespace doppel::cpu::x86::frontend {

class World final : public memory::CodeWatcher {
public:
    /// Errors: OutOfMemory. Becomes the CodeWatcher of `memory`, which outlives it.
    /// `spoil`: see TranslatorOptions; may be null.
    using Spoil = void (*)(std::uint8_t* begin, std::uint8_t* end);
    static base::Result<std::unique_ptr<World>> create(memory::GuestMemory& memory,
                                                       std::size_t code_bytes, Spoil spoil);
    ~World() override;

    translator::CodeCache& cache() { return *cache_; }
    const Stubs& stubs() const { return stubs_; }
    /// Where the vCPUs stand still; safepoints are at the top of the dispatcher's loop.
    cpu::Rendezvous& rendezvous() { return rendezvous_; }

    // --- vCPU threads ---
    void attach(Dispatcher& vcpu);
    void detach(Dispatcher& vcpu);
    translator::Block* translate(const translator::BlockKey& key, const std::byte* host,
                                 const std::byte* second, const FeatureSet& features);
    void link(const Site& site, std::uint64_t site_address, translator::Block& target);

    // --- any thread ---
    void on_code_write(memory::Gpa gpa, std::uint64_t length_bytes,
                       Moment moment) noexcept override;

private:
    World(memory::GuestMemory& memory, Spoil spoil) : memory_{memory}, spoil_{spoil} {}
    void make_code_page(std::uint64_t gpa_page);
    void drop_all_code();
    translator::Block* make_block(const translator::BlockKey& key, const std::byte* host,
                                  const std::byte* second, const FeatureSet& features);

    memory::GuestMemory& memory_;
    const Spoil spoil_;
    std::unique_ptr<translator::CodeCache> cache_;
    Stubs stubs_;
    cpu::Rendezvous rendezvous_;
    std::mutex mutex_; // of all below
    std::vector<Dispatcher*> vcpus_;
};

} // namespace doppel::cpu::x86::frontend
