//! One style of modules: the file of a module with parts is `foo/mod.rs`, not `foo.rs` beside `foo/`.

use super::finding::Finding;
use super::source::Source;

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let has_parts = |source: &&Source| {
        let folder = format!("{}/", source.path.trim_end_matches(".rs"));
        sources.iter().any(|other| other.path.starts_with(&folder))
    };
    // Cargo wants its roots where they are.
    let is_root = |source: &&Source| {
        let ends = ["/main.rs", "/lib.rs", "/build.rs"];
        ends.iter().any(|end| source.path.ends_with(end))
    };
    let beside = sources.iter().filter(has_parts).filter(|one| !is_root(one));
    beside
        .map(|source| {
            let folder = source.path.trim_end_matches(".rs");
            let message = format!("it stands beside its folder: `git mv` it to {folder}/mod.rs");
            source.finding("layout", 1, "", message)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_beside_its_folder_is_found() {
        let files = |paths: &[&str]| -> Vec<Source> {
            let files = paths.iter().map(|path| Source::parse(path, "").unwrap());
            files.collect()
        };
        let found = check(&files(&["a/src/b.rs", "a/src/b/c.rs", "a/src/bc.rs"]));
        assert_eq!((found.len(), found[0].path.as_str()), (1, "a/src/b.rs"));
        assert_eq!(check(&files(&["a/src/b/mod.rs", "a/src/b/c.rs"])), []);
    }
}
