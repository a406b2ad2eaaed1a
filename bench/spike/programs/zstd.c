// SPDX-License-Identifier: Apache-2.0
// zstd as a guest program: the library's own sources (fetched by `fetch`, never committed) in one unit.
#define DEBUGLEVEL 0
#define XXH_NAMESPACE ZSTD_
#define XXH_PRIVATE_API
#define XXH_INLINE_ALL
#define ZSTD_LEGACY_SUPPORT 0
#define ZSTD_DISABLE_ASM 1
#define DYNAMIC_BMI2 0
#define ZSTD_TRACE 0
#include "common/debug.c"
#include "common/entropy_common.c"
#include "common/error_private.c"
#include "common/fse_decompress.c"
#include "common/zstd_common.c"
#include "compress/fse_compress.c"
#include "compress/hist.c"
#include "compress/huf_compress.c"
#include "compress/zstd_compress_literals.c"
#include "compress/zstd_compress_sequences.c"
#include "compress/zstd_compress_superblock.c"
#include "compress/zstd_compress.c"
#include "compress/zstd_double_fast.c"
#include "compress/zstd_fast.c"
#include "compress/zstd_lazy.c"
#include "compress/zstd_ldm.c"
#include "compress/zstd_opt.c"
#include "decompress/huf_decompress.c"
#include "decompress/zstd_ddict.c"
#include "decompress/zstd_decompress.c"
#include "decompress/zstd_decompress_block.c"

extern uint8_t text_area[], packed_area[], unpacked_area[];
extern uint64_t packed_size;
uint64_t wl_zstd_c(uint64_t bytes) {
    static ZSTD_CCtx* context;
    if (!context) context = ZSTD_createCCtx();
    packed_size = ZSTD_compressCCtx(context, packed_area, 1 << 20, text_area, bytes, 1);
    return packed_size;
}
uint64_t wl_zstd_d(uint64_t bytes) {
    static ZSTD_DCtx* context;
    if (!context) context = ZSTD_createDCtx();
    uint64_t n = ZSTD_decompressDCtx(context, unpacked_area, bytes, packed_area, packed_size);
    return n + unpacked_area[0] + unpacked_area[n - 1];
}
