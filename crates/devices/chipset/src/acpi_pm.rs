//! acpi_pm
