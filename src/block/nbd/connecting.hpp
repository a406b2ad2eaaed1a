// SPDX-License-Identifier: Apache-2.0
#pragma once
/// How a client gets its socket.
#include "base/unique_fd.hpp"
#include "block/io/io_context.hpp"
#include "block/nbd/url.hpp"

namespace doppel::block::nbd {

/// A connected socket; the work is done on a worker: names are looked up and servers are far.
/// Errors: nobody listens there, or nobody answered within the URL's patience.
Task<base::UniqueFd> connect_to(IoContext& context, Url url);

} // namespace doppel::block::nbd
