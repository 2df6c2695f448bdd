//! Serde for the kernel's structures: their exact bytes.
//!
//! `kvm-bindings` pads what is too short and cuts off what is too long. States come from another
//! host, so a different length is an error here. For use as `#[serde(with = "exact")]`.

use serde::de::value::BorrowedBytesDeserializer;
use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize, Serializer};

pub(crate) fn serialize<T: Serialize, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    value.serialize(to)
}

pub(crate) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    let bytes: &'de [u8] = Deserialize::deserialize(from)?;
    if bytes.len() != size_of::<T>() {
        return Err(D::Error::custom(format!(
            "{} has {} bytes, found {}",
            std::any::type_name::<T>(),
            size_of::<T>(),
            bytes.len()
        )));
    }
    T::deserialize(BorrowedBytesDeserializer::new(bytes))
}
