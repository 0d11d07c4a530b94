// Shared by build.rs, which prepares their constants, and bin/net.rs, which includes what that writes.

/// Channels of the network.
pub const CHANNELS: usize = 16;
/// Of its batch normalization.
pub const EPSILON: f64 = 1e-3;

/// Numbers from −1 to below 1, the same everywhere.
fn draw(seed: &mut u32) -> f32 {
    *seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
    ((*seed as i32) >> 16) as f32 / 32768.0
}

/// Stand-ins for trained parameters: gamma, beta, running_mean, running_var.
fn trained() -> [[f32; CHANNELS]; 4] {
    let mut seed = 7;
    let mut p = [[0.0; CHANNELS]; 4];
    for c in 0..CHANNELS {
        p[0][c] = 1.0 + 0.5 * draw(&mut seed);
        p[1][c] = 0.25 * draw(&mut seed);
        p[2][c] = 0.5 * draw(&mut seed);
        p[3][c] = 1.0 + 0.5 * draw(&mut seed);
    }
    p
}
