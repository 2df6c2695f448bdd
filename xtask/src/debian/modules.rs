//! A kernel's modules, in the order in which they load. What must not be done here: load any.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The files of the modules called `wanted` and of what they depend on, each after what it needs. `directory` is
/// `kernel` below the modules of one version.
pub(super) fn in_order(directory: &Path, wanted: &[&str]) -> Result<Vec<PathBuf>> {
    let mut files = HashMap::new();
    collect(directory, &mut files)?;
    // What this kernel has built in needs no loading.
    let builtin = fs::read_to_string(directory.with_file_name("modules.builtin"));
    let builtin = builtin.context("modules.builtin of the kernel")?;
    let is_builtin = |name: &str| {
        let mut stems = builtin
            .lines()
            .filter_map(|line| Path::new(line).file_stem());
        stems.any(|stem| plain(&stem.to_string_lossy()) == plain(name))
    };
    let mut ordered = Vec::new();
    for name in wanted.iter().filter(|name| !is_builtin(name)) {
        add(name, &files, &mut ordered)?;
    }
    Ok(ordered)
}

/// `_` and `-` are the same in names of modules.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// Module files below `directory` by name.
fn collect(directory: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "ko")
            && let Some(name) = path.file_stem()
        {
            files.insert(plain(&name.to_string_lossy()), path);
        }
    }
    Ok(())
}

fn add(name: &str, files: &HashMap<String, PathBuf>, ordered: &mut Vec<PathBuf>) -> Result<()> {
    let file = files
        .get(&plain(name))
        .with_context(|| format!("the kernel has no module {name}"))?;
    if ordered.contains(file) {
        return Ok(());
    }
    for dependency in dependencies(&fs::read(file)?) {
        add(&dependency, files, ordered)?;
    }
    ordered.push(file.clone());
    Ok(())
}

/// A module names what it needs itself, in its section of NUL-terminated `key=value` texts.
fn dependencies(module: &[u8]) -> Vec<String> {
    module
        .split(|byte| *byte == 0)
        .find_map(|text| text.strip_prefix(b"depends="))
        .map(|names| String::from_utf8_lossy(names).into_owned())
        .unwrap_or_default()
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::Scratch;
    use super::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let scratch = Scratch::new(&std::env::temp_dir().join("xtask-modules")).unwrap();
        let directory = scratch.path();
        let modules = directory.join("kernel");
        fs::create_dir_all(modules.join("net")).unwrap();
        fs::write(
            directory.join("modules.builtin"),
            "kernel/fs/ext4/ext4.ko\n",
        )
        .unwrap();
        let module = |name: &str, needs: &str| {
            let text = format!("\x7fELF\0license=GPL\0depends={needs}\0name={name}\0");
            fs::write(modules.join(name), text).unwrap();
        };
        module("net/virtio_net.ko", "virtio,net_failover");
        module("net/net_failover.ko", "failover");
        module("failover.ko", "");
        module("virtio.ko", "virtio-ring");
        module("virtio-ring.ko", "");
        let ordered = in_order(&modules, &["virtio_net", "ext4", "virtio"]);
        let missing = in_order(&modules, &["virtio_net", "tun"]);
        let names: Vec<_> = (ordered.unwrap().iter())
            .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        let expected = [
            "virtio-ring",
            "virtio",
            "failover",
            "net_failover",
            "virtio_net",
        ];
        assert_eq!(names, expected);
        assert!(missing.unwrap_err().to_string().contains("no module tun"));
    }
}
