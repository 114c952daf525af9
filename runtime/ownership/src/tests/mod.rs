mod estate;
mod scenarios;
