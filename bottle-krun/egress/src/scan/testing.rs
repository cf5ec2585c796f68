//! Tokens for tests, made when they run: none stands in the tree.

use super::checksum;

/// Makes a token that GitHub could have issued, with this prefix; `seed` chooses which.
pub(crate) fn github_token_of(prefix: &str, seed: u8) -> String {
    let random: Vec<u8> = (0..30_u8)
        .map(|index| b'A' + (index.wrapping_mul(7) ^ seed) % 26)
        .collect();
    let check = checksum::of(&random);
    let text = [prefix.as_bytes(), &random, &check].concat();
    text.into_iter().map(char::from).collect()
}

/// Makes a classic personal access token.
pub(crate) fn github_token() -> String {
    github_token_of("ghp_", 0)
}

/// Makes a fine-grained personal access token.
pub(crate) fn github_pat() -> String {
    format!(
        "github_pat_{}_{}",
        "11ABCDEFGH0".repeat(2),
        "xY3".repeat(20).split_off(1)
    )
}
