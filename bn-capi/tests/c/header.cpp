// The header as C++ sees it.
#include "batchnorm.h"

#include <cstddef>
#include <type_traits>

static_assert(std::is_trivial<batchnorm_desc>::value && std::is_standard_layout<batchnorm_desc>::value, "");
static_assert(sizeof(batchnorm_moments) == 24 && sizeof(batchnorm_sums) == 16 && sizeof(batchnorm_prepared) == 12, "");
static_assert(offsetof(batchnorm_desc, act_a) == 24 && offsetof(batchnorm_desc, x) == 72, "");
static_assert(std::is_same<batchnorm_status, decltype(batchnorm_apply(nullptr, nullptr, nullptr, nullptr, nullptr))>::value, "");

int main() {
    batchnorm_desc desc = {};
    desc.struct_size = sizeof desc;
    desc.channels = 3;
    return batchnorm_workspace_min(&desc, BATCHNORM_OP_INFERENCE) == 0 || batchnorm_status_message(BATCHNORM_OK)[0] != 'd';
}
