//! General matrix products on one thread, by a library.

/// A matrix whose element `(i, j)` is `data[i·row + j·col]`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub col: usize,
}

/// `c = a·b` for a dense `[m, n]` matrix `c`, on the calling thread.
pub(super) fn matmul(m: usize, n: usize, k: usize, c: &mut [f32], a: Matrix<'_>, b: Matrix<'_>) {
    assert!(c.len() >= m * n, "matrix c too short");
    // SAFETY: `c` holds m rows of n elements and is borrowed exclusively.
    unsafe { multiply(m, n, k, c.as_mut_ptr(), n, a, b, false) }
}

/// `c += a·b` for a dense `[m, n]` matrix `c`, on the calling thread.
pub(super) fn matmul_add(m: usize, n: usize, k: usize, c: &mut [f32], a: Matrix<'_>, b: Matrix<'_>) {
    assert!(c.len() >= m * n, "matrix c too short");
    // SAFETY: `c` holds m rows of n elements, all initialised, and is borrowed exclusively.
    unsafe { multiply(m, n, k, c.as_mut_ptr(), n, a, b, true) }
}

/// Makes the product's own memory of the calling thread resident. Else each thread would allocate it with its first
/// large product, which may come many pictures later.
pub(super) fn warm_up() {
    const SIDE: usize = 64;
    // Many rows, so that it packs the way large products do.
    let (rows, m) = (vec![0.0; SIDE * SIDE * SIDE], SIDE * SIDE);
    let matrix = Matrix { data: &rows, row: SIDE, col: 1 };
    matmul(m, SIDE, SIDE, &mut vec![0.0; m * SIDE], matrix, matrix);
}

/// `c = a·b`, or `c += a·b`, on the calling thread; rows of `c` lie `ldc` apart.
///
/// # Safety
/// `c` must point to `m` such rows whose first `n` elements are initialised and nothing else reads or writes meanwhile.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn multiply(
    m: usize,
    n: usize,
    k: usize,
    c: *mut f32,
    ldc: usize,
    a: Matrix<'_>,
    b: Matrix<'_>,
    accumulate: bool,
) {
    if k == 0 && !accumulate {
        for row in 0..m {
            // SAFETY: row `row` of `c`, by the caller's promise.
            unsafe { std::slice::from_raw_parts_mut(c.wrapping_add(row * ldc), n) }.fill(0.0);
        }
    }
    if m * n * k == 0 {
        return;
    }
    assert!(a.data.len() > (m - 1) * a.row + (k - 1) * a.col, "matrix a too short");
    assert!(b.data.len() > (k - 1) * b.row + (n - 1) * b.col, "matrix b too short");
    let i = |stride: usize| stride as isize;
    let (ap, bp) = (a.data.as_ptr(), b.data.as_ptr());
    let serial = gemm::Parallelism::None;
    // SAFETY: `a` and `b` lie in their slices, as just checked; `c` is the caller's promise.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c,
            1,
            i(ldc),
            accumulate,
            ap,
            i(a.col),
            i(a.row),
            bp,
            i(b.col),
            i(b.row),
            1.0,
            1.0,
            false,
            false,
            false,
            serial,
        );
    }
}
