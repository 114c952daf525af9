mod estate;
mod salvage;
mod scenarios;
