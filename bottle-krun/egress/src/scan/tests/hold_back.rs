//! What waits, and for how long.

use super::super::engine::What;
use super::*;

/// A body that is read piece by piece, and what has left of it.
struct Reader(BodyScan);

impl Reader {
    fn new(treatment: Treatment) -> Self {
        Self(scanner().stream(ContentEncoding::Identity, treatment))
    }

    fn push(&mut self, text: &str) -> String {
        let out = self
            .0
            .push(Bytes::copy_from_slice(text.as_bytes()))
            .unwrap();
        String::from_utf8(out.concat()).unwrap()
    }

    fn relax(&mut self) -> String {
        String::from_utf8(self.0.relax().concat()).unwrap()
    }
}

#[test]
fn the_bytes_of_a_live_match_wait_and_no_others() {
    let mut body = Reader::new(Treatment::Refuse);
    assert_eq!(body.push("before ghp_"), "before ");
    assert_eq!(body.push("AbC"), "");
    assert_eq!(body.push("!after."), "ghp_AbC!after.");
    assert_eq!(body.push("x canary-7f"), "x ");
    assert_eq!(body.push("% y"), "canary-7f% y");
    assert_eq!(body.push("z\\u0063anar"), "z");
    assert_eq!(body.push("ist"), "\\u0063anarist");
}

#[test]
fn the_first_byte_of_a_match_waits_already() {
    let mut body = Reader::new(Treatment::Refuse);
    assert_eq!(body.push("x c"), "x ");
    assert_eq!(body.push("a"), "");
    assert_eq!(body.push("n"), "");
    assert_eq!(body.push("."), "can.");
    assert_eq!(body.push("x \\u00"), "x ");
    assert_eq!(body.push("63an"), "");
    assert_eq!(body.push("."), "\\u0063an.");
    assert_eq!(body.push("x %6"), "x ");
    assert_eq!(body.push("3a"), "");
    assert_eq!(body.push("!"), "%63a!");
}

#[test]
fn what_everybody_knows_of_a_token_waits_only_if_it_may_have_to_be_overwritten() {
    let mut body = Reader::new(Treatment::Refuse);
    assert_eq!(body.push("x gh"), "x gh");
    assert_eq!(body.push("p_"), "", "the rest of it waits");
    let mut body = Reader::new(Treatment::Overwrite);
    assert_eq!(body.push("x gh"), "x ");
    assert_eq!(body.relax(), "gh");
    assert_eq!(body.push("p_"), "");
}

#[test]
fn three_bytes_may_go_when_nothing_follows_and_a_fourth_may_not() {
    let mut body = Reader::new(Treatment::Refuse);
    assert_eq!(body.push("x can"), "x ");
    assert!(body.0.holds());
    assert_eq!(body.relax(), "can");
    assert!(!body.0.holds());
    assert_eq!(body.push("a"), "");
    assert_eq!(body.relax(), "", "the fourth");
    assert_eq!(body.push("ry-7"), "");
    assert_eq!(body.relax(), "");
    let rest = &PLAIN["canary-7".len()..];
    let refused = body.0.push(Bytes::copy_from_slice(rest.as_bytes()));
    assert!(
        matches!(refused, Err(ScanRefusal::Secret(_))),
        "{refused:?}"
    );
    assert!(body.0.relax().is_empty());
}

#[test]
fn ordinary_text_leaves_as_it_comes_or_after_a_lull() {
    let mut body = Reader::new(Treatment::Refuse);
    for piece in [
        "fn main() {\n    println!(\"%d\\n\");\n}\n",
        "{\"log\": \"gh",
        "p\"}",
        "ends in g",
        "can",
        "",
    ] {
        assert_eq!(body.push(piece) + &body.relax(), piece);
    }
    assert!(body.0.finish().unwrap().is_empty());
}

#[test]
fn nothing_is_copied_on_the_way() {
    let mut scan = scanner().stream(ContentEncoding::Identity, Treatment::Refuse);
    let chunk = Bytes::from(b"plain text, ".repeat(1000));
    let out = scan.push(chunk.clone()).unwrap();
    assert_eq!(out[0].as_ptr(), chunk.as_ptr());
}

proptest! {
    /// The place of the first secret is the same however the body comes, and not one byte of it
    /// leaves.
    #[test]
    fn not_one_byte_of_a_secret_leaves(
        kinds in prop::collection::vec(any::<u8>(), 1..8),
        cuts in prop::collection::vec(any::<Index>(), 0..12),
    ) {
        let scanner = scanner();
        let body: Vec<u8> = kinds.iter().flat_map(|kind| fragment(*kind)).collect();
        let mut readings = Readings::new(Arc::clone(&scanner.engine));
        let first = readings.feed(&body).1.or_else(|| readings.end());
        for pieces in [pieces(&body, &cuts), body.chunks(1).collect()] {
            let outcome = push_all(&scanner, ContentEncoding::Identity, pieces);
            prop_assert_eq!(outcome.refusal.is_some(), first.is_some());
            // A token's first three bytes are everybody's.
            let safe = first.map_or(body.len() as u64, |find| match find.what {
                What::Token(_) => find.from + 3 * 12,
                What::Value(_) => find.from,
            });
            prop_assert!(outcome.released.len() as u64 <= safe, "{} {}", outcome.released.len(), safe);
        }
    }
}
