//! Amounts, as people read them.

/// Words an amount of bytes in decimal units, as registries and docker do: `47.1 MB`.
pub(crate) fn bytes(amount: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if amount < 1000 {
        return format!("{amount} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits of it are shown")]
    let mut size = amount as f64 / 1000.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().unwrap_or(&"kB");
    // What would be rounded to 1000.0 belongs to the next unit.
    while size >= 999.95
        && let Some(next) = units.next()
    {
        size /= 1000.0;
        unit = next;
    }
    format!("{size:.1} {unit}")
}

/// Words a number of layers.
pub(crate) fn layers(count: usize) -> String {
    match count {
        1 => "1 layer".to_owned(),
        many => format!("{many} layers"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_one_decimal_and_the_unit_that_fits() {
        let told = [
            0,
            999,
            1000,
            999_949,
            999_960,
            47_123_456,
            5_000_000_000_000_000,
        ]
        .map(bytes);
        let expected = [
            "0 B",
            "999 B",
            "1.0 kB",
            "999.9 kB",
            "1.0 MB",
            "47.1 MB",
            "5000.0 TB",
        ];
        assert_eq!(told, expected);
    }
}
