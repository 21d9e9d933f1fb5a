// The argument of the self-test's kernels.
#pragma once

struct TestArgs {
    float* x;
    float* y;
    unsigned* count;
    unsigned n;
};
