"""Where the losses meet other libraries; each module is imported by name and needs the library that it is named after."""
