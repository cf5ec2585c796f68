//! Bottles by what a person calls them: an id, or a name that only one of them has.

use anyhow::anyhow;
use bottle_core::backend::{Backend, Bottle, Summary};
use bottle_core::id::BottleId;

use crate::failure::Failure;

/// Finds a bottle that runs or was kept. Of several with the name, the one that runs is meant.
pub(crate) async fn find(backend: &dyn Backend, word: &BottleId) -> Result<Summary, Failure> {
    let all = backend.list().await?;
    if let Some(found) = all.iter().find(|it| it.id == *word) {
        return Ok(found.clone());
    }
    let named: Vec<_> = all.into_iter().filter(|it| it.name == *word).collect();
    let running: Vec<_> = named.iter().filter(|it| it.runs()).cloned().collect();
    match (&*running, &*named) {
        ([one], _) | ([], [one]) => Ok(one.clone()),
        ([], []) => Err(Failure::user(anyhow!("there is no bottle `{word}`"))
            .hint("`bottle list --all` shows those there are")),
        ([], many) | (many, _) => {
            let ids: Vec<_> = many.iter().map(|it| it.id.as_str()).collect();
            Err(
                Failure::user(anyhow!("{} bottles are named `{word}`", ids.len()))
                    .hint(format!("say which by its id: {}", ids.join(", "))),
            )
        }
    }
}

/// Finds a bottle that runs, and opens it.
pub(crate) async fn open(
    backend: &dyn Backend,
    word: &BottleId,
) -> Result<Box<dyn Bottle>, Failure> {
    let found = find(backend, word).await?;
    if !found.runs() {
        return Err(Failure::user(anyhow!("bottle `{}` does not run", found.id))
            .hint(format!("`bottle restart {}` starts it again", found.id)));
    }
    Ok(backend.open(&found.id).await?)
}
