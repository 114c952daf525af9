mod model;
mod scenarios;
